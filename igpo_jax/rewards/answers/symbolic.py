"""Equality by math-verify and sympy, for the operations of calculus that the judge's own grammar does not read.

latex2sympy parses by a grammar and evaluates nothing; the values that sympy then computes can take any time, so this
runs in a worker with limits, after a check that the numbers written are of moderate size.
"""

from typing import Any

#: Bounds on what sympy is asked: nodes of a tree, digits of a number, exponents, terms of a sum.
_MAX_NODES, _MAX_DIGITS, _MAX_EXPONENT, _MAX_TERMS = 300, 1000, 1000, 10_000


def load() -> None:
    """Imports math-verify, latex2sympy and sympy: over half a second of CPU time, outside every comparison's limit."""
    import latex2sympy2_extended  # noqa: F401
    import math_verify  # noqa: F401


def same_value(gold: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal by math-verify; None where one does not parse or is too large."""
    from latex2sympy2_extended import latex2sympy
    from math_verify import verify

    try:
        sides = [latex2sympy(side) for side in (gold, answer)]
    except MemoryError:
        raise
    except Exception:  # latex2sympy raises bare Exception on what it does not read
        return None
    if not all(map(_is_moderate, sides)):
        return None
    # digits beyond any rounded decimal; no time limit of its own (that needs signals and the main thread)
    return bool(verify(*sides, float_rounding=40, numeric_precision=60, timeout_seconds=None))


def _is_moderate(tree: Any) -> bool:
    """Whether nothing in the tree takes long only because a number in it is large."""
    import sympy

    for count, node in enumerate(sympy.preorder_traversal(tree)):
        if count > _MAX_NODES:
            return False
        if isinstance(node, sympy.Rational) and abs(node.p * node.q) > 10**_MAX_DIGITS:
            return False
        if isinstance(node, sympy.Pow) and node.exp.is_number and not _is_at_most(node.exp, _MAX_EXPONENT):
            return False
        if isinstance(node, sympy.factorial | sympy.binomial) and not _is_at_most(node.args[0], _MAX_EXPONENT):
            return False
        if isinstance(node, sympy.Sum | sympy.Product) and not all(map(_is_short, node.limits)):
            return False
    return True


def _is_at_most(node: Any, bound: int) -> bool:
    """Whether a node is a written number up to ``bound`` or free of large ones by the check of its own parts."""
    import sympy

    if not node.is_Number:
        return not (node.is_number and node.atoms(sympy.Pow))
    return bool(abs(node) <= bound)


def _is_short(limit: Any) -> bool:
    """Whether a sum's limits, where both are written numbers, span few terms; infinite sums are left to sympy."""
    low, high = limit[1:]
    if not (low.is_Integer and high.is_Integer):
        return not (low.is_number and high.is_number) or bool(low.is_infinite or high.is_infinite)
    return bool(high - low <= _MAX_TERMS)
