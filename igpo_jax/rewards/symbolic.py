"""Equality by math-verify and sympy, for what the judge's own grammar does not read; only ever run in a worker."""


def load() -> None:
    """Imports math-verify, latex2sympy and sympy."""
    import latex2sympy2_extended  # noqa: F401
    import math_verify  # noqa: F401
