"""Exact values of rational trees, while their numerators and denominators stay of moderate size."""

import math
from fractions import Fraction
from functools import reduce

from igpo_jax.rewards.answers.nodes import Node

#: Bits of an exact numerator or denominator.
EXACT_BITS = 24_000


class NoValue(Exception):
    """The tree has no value that can be computed here: not a scalar, undefined, or too large."""


class Inexact(Exception):
    """The tree's value is not a fraction of moderate size."""


def exact(node: Node) -> Fraction:
    """The exact value of a tree of rational operations.

    Raises:
        Inexact: the value is not rational, is too large to write out, or depends on a symbol.
        NoValue: the tree divides by zero.
    """
    return _bounded(_exact(node))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > EXACT_BITS:
        raise Inexact
    return value


def _exact(node: Node) -> Fraction:
    kind = node.kind
    if kind == "number" and node.value is not None:
        return node.value
    if kind == "degrees":
        return exact(node.items[0])
    if kind == "negate":
        return -exact(node.items[0])
    if kind == "add":
        return reduce(lambda total, item: _bounded(total + exact(item)), node.items, Fraction(0))
    if kind == "multiply":
        return reduce(lambda total, item: _bounded(total * exact(item)), node.items, Fraction(1))
    if kind in ("divide", "inverse"):
        top = exact(node.items[0]) if kind == "divide" else Fraction(1)
        bottom = exact(node.items[-1])
        if bottom == 0:
            raise NoValue
        return top / bottom
    if kind == "power":
        return _exact_power(*(exact(item) for item in node.items))
    if kind == "factorial":
        return Fraction(math.factorial(_small(exact(node.items[0]), 3000)))
    if kind == "call" and node.name in _EXACT_CALLS:
        values = [exact(item) for item in arguments(node)]
        try:
            return _EXACT_CALLS[node.name](values)
        except (LookupError, ValueError, TypeError) as error:
            raise Inexact from error  # not the arguments that the function takes
    raise Inexact


def arguments(node: Node) -> tuple[Node, ...]:
    """The arguments of a call; ``\\max\\{1, 2\\}`` has two."""
    return node.items[0].items if len(node.items) == 1 and node.items[0].kind == "set" else node.items


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent < 0:
        raise NoValue
    power = _small(abs(exponent), EXACT_BITS)
    if power * max(base.numerator.bit_length(), base.denominator.bit_length()) > 2 * EXACT_BITS:
        raise Inexact
    return base**power if exponent >= 0 else 1 / base**power


def _small(value: Fraction, limit: int) -> int:
    if value.denominator != 1 or not 0 <= value <= limit:
        raise Inexact
    return int(value)


def _integers(values: list[Fraction]) -> list[int]:
    if not values or any(value.denominator != 1 for value in values):
        raise Inexact
    return [int(value) for value in values]


def _exact_binomial(values: list[Fraction]) -> Fraction:
    top, bottom = _integers(values)
    return Fraction(math.comb(_small(Fraction(top), 5000), _small(Fraction(bottom), 5000)))


def _exact_root(values: list[Fraction]) -> Fraction:
    if values[0].denominator != 1 or values[0] < 0 or len(values) > 1:
        raise Inexact
    root = math.isqrt(int(values[0]))
    if root * root != values[0]:
        raise Inexact
    return Fraction(root)


_EXACT_CALLS = {
    "abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "gcd": lambda values: Fraction(math.gcd(*_integers(values))),
    "lcm": lambda values: Fraction(math.lcm(*_integers(values))),
    "max": lambda values: max(values),
    "min": lambda values: min(values),
    "binom": _exact_binomial,
    "sqrt": _exact_root,
}
