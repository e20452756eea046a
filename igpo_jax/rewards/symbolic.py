"""Equality by math-verify and sympy, for the operations of calculus that the judge's own grammar does not read.

latex2sympy parses by a grammar and evaluates nothing; the values that sympy then computes can take any time, so this
runs in a worker with limits.
"""


def load() -> None:
    """Imports math-verify, latex2sympy and sympy."""
    import latex2sympy2_extended  # noqa: F401
    import math_verify  # noqa: F401


def same_value(gold: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal by math-verify; None where one of them does not parse as a whole."""
    from latex2sympy2_extended import latex2sympy
    from math_verify import verify

    try:
        sides = [latex2sympy(side) for side in (gold, answer)]
    except Exception:  # latex2sympy raises bare Exception on what it does not read
        return None
    # digits beyond any rounded decimal, no time limits of its own (they need the main thread and signals)
    return bool(verify(*sides, float_rounding=40, numeric_precision=60, timeout_seconds=None))
