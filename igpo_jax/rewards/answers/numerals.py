"""Numbers as they are written."""

from fractions import Fraction

from igpo_jax.rewards.answers.nodes import Node, number


def numeral_node(text: str) -> Node:
    """The node of a numeral; its name keeps the digits of a whole number, its power of ten is not worked out."""
    mantissa, _, exponent = text.lower().partition("e")
    value = Fraction(mantissa)
    if not exponent:
        return Node("number", name=text if text.isdigit() else "", value=value)
    return Node("multiply", (Node("number", value=value), Node("power", (number(10), number(int(exponent))))))


def whole_number(node: Node) -> int | None:
    """The value of a node that is a whole number, else None."""
    return int(node.value) if node.kind == "number" and node.value is not None and node.value.denominator == 1 else None
