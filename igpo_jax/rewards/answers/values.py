"""Values of scalar trees: exact fractions where they stay small, else numbers of a hundred digits at fixed points.

Two expressions are equal in value when they agree at every sample point of their symbols: with a hundred digits, an
identity that holds at all of them by accident does not occur in practice, and a rounded decimal is told from the number
it rounds. Every operation is bounded before it starts, so no expression takes long, whatever it says.
"""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from typing import Any

import mpmath

from igpo_jax.rewards.answers.exact import Inexact, NoValue, arguments, exact
from igpo_jax.rewards.answers.nodes import Node
from igpo_jax.rewards.answers.words import names

#: Working precision in bits, and the bits on which two equal values agree.
PRECISION, AGREEMENT = 400, 230
#: Binary exponent beyond which a number has no value here; keeps every mpmath call short.
_MAGNITUDE = 10**15
#: Angles and other arguments that a function reduces, as a binary exponent.
_REDUCIBLE = 4000

_Number = Any  # mpmath's mpf or mpc
_context = mpmath.MPContext()
_context.prec = PRECISION
#: What cancelling values of size one leaves behind.
_ROUNDING = _context.mpf(2) ** -(PRECISION - 40)


# --- numeric --------------------------------------------------------------------------------------------------------


def approximate(node: Node, point: dict[str, _Number], logarithm: int = 10) -> _Number:
    """The value at a point, an mpmath number of 400 bits.

    Args:
        node: the tree.
        point: a value for each symbol.
        logarithm: base of a logarithm that names none, 10 or 0 (natural).

    Raises:
        NoValue: no value here: undefined, not a scalar, or beyond the bounds on size.
    """
    try:
        value = _Evaluator(point, logarithm).value(node)
    except (ArithmeticError, LookupError, ValueError, TypeError, mpmath.libmp.NoConvergence) as error:
        raise NoValue from error
    if _context.isnan(value):
        raise NoValue
    return value


class _Evaluator:
    def __init__(self, point: dict[str, _Number], logarithm: int) -> None:
        self.point = point
        self.logarithm = logarithm
        self.angle = False

    def value(self, node: Node) -> _Number:
        method = getattr(self, f"_{node.kind}", None)
        if method is None:
            raise NoValue
        return _sized(method(node))

    def _values(self, node: Node) -> list[_Number]:
        return [self.value(item) for item in arguments(node)]

    def _number(self, node: Node) -> _Number:
        if node.value is None:
            raise NoValue
        return _context.mpf(node.value.numerator) / node.value.denominator

    def _symbol(self, node: Node) -> _Number:
        return self.point[node.name]

    def _constant(self, node: Node) -> _Number:
        constants = {"pi": _context.pi, "e": _context.e, "i": _context.j, "infty": _context.inf}
        return constants[node.name] * 1

    def _degrees(self, node: Node) -> _Number:
        value = self.value(node.items[0])
        return value * _context.pi / 180 if self.angle else value

    def _negate(self, node: Node) -> _Number:
        return -self.value(node.items[0])

    def _add(self, node: Node) -> _Number:
        values = self._values(node)
        total = sum(values)
        # what is left after cancelling all the working bits is rounding
        largest = max(abs(value) for value in values)
        finite = largest != _context.inf and total != 0
        return _context.zero if finite and abs(total) < largest * _ROUNDING else total

    def _multiply(self, node: Node) -> _Number:
        return reduce(lambda total, item: _sized(total * self.value(item)), node.items, _context.one)

    def _divide(self, node: Node) -> _Number:
        top, bottom = self._values(node)
        return top / bottom

    def _inverse(self, node: Node) -> _Number:
        return 1 / self.value(node.items[0])

    def _power(self, node: Node) -> _Number:
        base, exponent = self._values(node)
        if base == 0:
            if _context.re(exponent) < 0:
                raise NoValue
            return _context.one if exponent == 0 else _context.zero
        if abs(exponent) * (1 + abs(_context.log(abs(base), 2))) > _MAGNITUDE:
            raise NoValue
        if _is_real(base) and base < 0 and (root := self._odd_root(node.items[1])) is not None:
            sign = -1 if root.numerator % 2 else 1
            return sign * _context.power(-base, exponent)
        return _context.power(base, exponent)

    def _odd_root(self, node: Node) -> Fraction | None:
        """The exponent where it is a fraction with an odd denominator: the real root of a negative number."""
        try:
            exponent = exact(node)
        except (Inexact, NoValue):
            return None
        return exponent if exponent.denominator > 1 and exponent.denominator % 2 else None

    def _factorial(self, node: Node) -> _Number:
        value = self.value(node.items[0])
        if abs(value) > 10**12:
            raise NoValue
        return _context.gamma(value + 1)

    def _call(self, node: Node) -> _Number:
        if node.name in ("log", "ln", "arclog", "arcln"):
            return self._log(node)
        outer, self.angle = self.angle, node.name in _TRIGONOMETRIC
        values = self._values(node)
        self.angle = outer
        if node.name not in _CALLS:
            raise NoValue
        if any(value != 0 and abs(_mag(value)) > _REDUCIBLE for value in values) and node.name in _REDUCING:
            raise NoValue
        result = _CALLS[node.name](*values)
        if node.name not in _TRIGONOMETRIC:
            return result
        if abs(result) > 1 / _ROUNDING:
            raise NoValue  # a pole that rounding hides
        return _context.zero if abs(result) < _ROUNDING else result

    def _log(self, node: Node) -> _Number:
        values = self._values(node)
        if node.name.startswith("arc") or values[0] == 0:
            raise NoValue
        result = _context.log(values[0])
        result = _context.zero if abs(result) < _ROUNDING else result
        if len(values) == 2:
            return result / _context.log(values[1])
        return result / _context.log(self.logarithm) if node.name == "log" and self.logarithm else result


def _mag(value: _Number) -> int | float:
    return _context.mag(value)


def _sized(value: _Number) -> _Number:
    if value == 0 or _context.isinf(value):
        return value
    if abs(_mag(value)) > _MAGNITUDE:
        raise NoValue
    return value


def _is_real(value: _Number) -> bool:
    return isinstance(value, _context.mpf)


def _root(value: _Number, index: _Number) -> _Number:
    if _is_real(value) and value < 0 and _context.isint(index) and int(index) % 2:
        return -_context.power(-value, 1 / index)
    return _context.zero if value == 0 else _context.power(value, 1 / index)


def _binomial(top: _Number, bottom: _Number) -> _Number:
    if abs(top) > 10**9 or abs(bottom) > 10**9:
        raise NoValue
    return _context.binomial(top, bottom)


_TRIGONOMETRIC = names("sin cos tan cot sec csc")
_CALLS = {
    **{
        name: getattr(_context, name) for name in sorted(names("sin cos tan cot sec csc sinh cosh tanh exp floor ceil"))
    },
    **{f"arc{name}": getattr(_context, f"a{name}") for name in sorted(names("sin cos tan cot sec csc sinh cosh tanh"))},
    "abs": abs,
    "sqrt": _context.sqrt,
    "root": _root,
    "binom": _binomial,
    "max": max,
    "min": min,
}
_REDUCING = _TRIGONOMETRIC | names("sinh cosh tanh exp floor ceil")


# --- equality -------------------------------------------------------------------------------------------------------


def symbols(node: Node) -> set[str]:
    """Names of the free symbols."""
    found = {node.name} if node.kind == "symbol" else set()
    return found.union(*(symbols(item) for item in node.items))


def points(free: set[str]) -> Iterator[dict[str, _Number]]:
    """Sample points, the same in every process: four positive ones, small and large, then three of mixed signs."""
    scales = (1, 1, 7, 30, 1, 3, 1)
    for place, scale in enumerate(scales):
        point = {}
        for order, name in enumerate(sorted(free)):
            digits = zlib.crc32(f"{name}/{place}".encode()) + 1
            value = scale * (_context.mpf(digits) / 2**32 + _context.mpf(1) / 3)
            negative = place >= 4 and (order + place) % 2 == 0
            point[name] = -value if negative else value
        yield point


def same_value(left: Node, right: Node) -> bool:
    """Whether two scalar trees are equal in value, for all values of their symbols.

    Raises:
        NoValue: one of them has no value that can be computed here.
    """
    try:
        return exact(left) == exact(right)
    except Inexact:
        pass
    bases = (10, 0) if _has_bare_log(left) or _has_bare_log(right) else (10,)
    return any(_agree(left, right, base) for base in bases)


def _has_bare_log(node: Node) -> bool:
    bare = node.kind == "call" and node.name == "log" and len(node.items) == 1
    return bare or any(_has_bare_log(item) for item in node.items)


def _agree(left: Node, right: Node, logarithm: int) -> bool:
    free = symbols(left) | symbols(right)
    if not free:
        return close(approximate(left, {}, logarithm), approximate(right, {}, logarithm))
    pairs = []
    for point in points(free):
        try:
            pairs.append((approximate(left, point, logarithm), approximate(right, point, logarithm)))
        except NoValue:
            continue
    real = [pair for pair in pairs if all(_is_real(value) for value in pair)]
    chosen = real if len(real) >= 3 else pairs
    if len(chosen) < 2:
        raise NoValue
    return all(close(*pair) for pair in chosen)


def close(left: _Number, right: _Number) -> bool:
    """Whether two computed values are the same number up to rounding."""
    if _context.isinf(left) or _context.isinf(right):
        return bool(left == right)
    scale = max(abs(left), abs(right))
    return bool(abs(left - right) <= scale * _context.mpf(2) ** -AGREEMENT)
