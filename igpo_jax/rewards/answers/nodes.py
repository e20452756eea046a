"""The tree of an answer that was read: a few kinds of node, compared by structure with ``==``."""

from dataclasses import dataclass
from fractions import Fraction


class NotUnderstood(Exception):
    """The text is outside the judge's grammar (or over its limits on size), so only its text can be compared."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        kind: scalars: "number" (``value``; ``name`` has the digits of a written whole number), "symbol", "constant"
            (pi, e, i, infty), "add", "multiply", "divide", "inverse", "power", "negate", "plusminus" (name "+" or "-"),
            "call" (name of the function), "factorial", "degrees", "base" (name: the digits, items: the base).
            Collections: "list" (bare, order free), "set", "bracket" (name: the two brackets), "matrix" (items are
            rows), "row", "ratio" (name: "am", "pm" or empty), "union" (name: the operation). Statements: "relation"
            (name: the signs, joined by blanks). Words: "text".
        items: the children, in order.
        name: see ``kind``.
        value: the exact value of a number.
    """

    kind: str
    items: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction | None = None


def number(value: int | Fraction) -> Node:
    """The node of an exact number."""
    return Node("number", value=Fraction(value))
