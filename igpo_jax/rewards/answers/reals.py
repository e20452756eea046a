r"""Sets of real numbers as sorted disjoint intervals, so that ``x > 2`` equals ``(2, \infty)``."""

from dataclasses import dataclass
from typing import Any

from igpo_jax.rewards.answers.nodes import Node
from igpo_jax.rewards.answers.values import NoValue, approximate, close, symbols

_INFINITY = Node("constant", name="infty")
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_MAX_PIECES = 40


@dataclass(frozen=True)
class Interval:
    """One interval; the ends are mpmath numbers, infinite ones are open."""

    low: Any
    high: Any
    low_closed: bool
    high_closed: bool


def same_reals(left: Node, right: Node) -> bool:
    """Whether both trees are sets of real numbers, and the same set."""
    if len(symbols(left) | symbols(right)) > 1:
        return False
    try:
        first, second = _normal(_pieces(left)), _normal(_pieces(right))
    except NoValue:
        return False
    return len(first) == len(second) and all(_same_interval(a, b) for a, b in zip(first, second, strict=True))


def _same_interval(a: Interval, b: Interval) -> bool:
    closed = (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
    return closed and close(a.low, b.low) and close(a.high, b.high)


def _pieces(node: Node) -> list[Interval]:
    if node.kind == "bracket" and len(node.items) == 2:
        return _interval(*node.items, node.name[0] == "[", node.name[1] == "]")
    if node.kind in ("set", "list"):
        sets = node.kind == "list" and any(item.kind in ("relation", "bracket", "union") for item in node.items)
        return [
            piece for item in node.items for piece in (_pieces(item) if sets else _interval(item, item, True, True))
        ]
    if node.kind == "symbol" and node.name == "mathbb R":
        return _everything()
    if node.kind == "union":
        first, *others = (_pieces(item) for item in node.items)
        for other in others:
            first = {"cup": _unite, "cap": _intersect, "minus": _subtract}[node.name](first, other)
        return first
    if node.kind == "relation":
        return _solutions(node)
    raise NoValue


def _solutions(node: Node) -> list[Interval]:
    """The solutions of ``x < 3``, ``2 <= x < 5`` or ``x \\in ...`` for a lone symbol."""
    signs = node.name.split()
    if signs == ["in"] and node.items[0].kind == "symbol":
        return _pieces(node.items[1])
    place = next((place for place, item in enumerate(node.items) if item.kind == "symbol"), None)
    if place is None or not all(sign in _MIRRORED for sign in signs):
        raise NoValue
    result = _everything()
    for other, sign in ((place - 1, _MIRRORED[signs[place - 1]] if place else ""), (place + 1, [*signs, ""][place])):
        if 0 <= other < len(node.items):
            result = _intersect(result, _compared(sign, node.items[other]))
    if len(node.items) > 2 and place != 1:
        raise NoValue
    return result


def _compared(sign: str, bound: Node) -> list[Interval]:
    minus_infinity = Node("negate", (_INFINITY,))
    below = _interval(minus_infinity, bound, False, sign in ("<=", "="))
    above = _interval(bound, _INFINITY, sign in (">=", "="), False)
    choices = {"<": below, "<=": below, ">": above, ">=": above, "!=": [*below, *above]}
    return choices.get(sign) or _intersect(below, above)


def _everything() -> list[Interval]:
    return _interval(Node("negate", (_INFINITY,)), _INFINITY, False, False)


def _interval(low: Node, high: Node, low_closed: bool, high_closed: bool) -> list[Interval]:
    ends = approximate(low, {}), approximate(high, {})
    if not all(end == end.real for end in ends):
        raise NoValue
    bottom, top = (end.real for end in ends)
    infinite = approximate(_INFINITY, {})
    return [Interval(bottom, top, low_closed and abs(bottom) != infinite, high_closed and abs(top) != infinite)]


def _unite(left: list[Interval], right: list[Interval]) -> list[Interval]:
    return [*left, *right]


def _intersect(left: list[Interval], right: list[Interval]) -> list[Interval]:
    pieces = []
    for a in left:
        for b in right:
            low, low_closed = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high, high_closed = min((a.high, a.high_closed), (b.high, b.high_closed))
            pieces.append(Interval(low, high, not low_closed, high_closed))
    return pieces


def _subtract(left: list[Interval], right: list[Interval]) -> list[Interval]:
    infinite = approximate(_INFINITY, {})
    for b in right:
        outside = [
            Interval(-infinite, b.low, False, not b.low_closed and b.low != -infinite),
            Interval(b.high, infinite, not b.high_closed and b.high != infinite, False),
        ]
        left = _normal(_intersect(left, outside))
    return left


def _normal(pieces: list[Interval]) -> list[Interval]:
    """Sorted, without empty pieces, touching pieces joined."""
    if len(pieces) > _MAX_PIECES**2:
        raise NoValue
    filled = [p for p in pieces if p.low < p.high or (p.low == p.high and p.low_closed and p.high_closed)]
    result: list[Interval] = []
    for piece in sorted(filled, key=lambda p: (p.low, not p.low_closed)):
        last = result[-1] if result else None
        touching = last is not None and (
            piece.low < last.high or (piece.low == last.high and (piece.low_closed or last.high_closed))
        )
        if last is None or not touching:
            result.append(piece)
            continue
        high, high_closed = max((last.high, last.high_closed), (piece.high, piece.high_closed))
        result[-1] = Interval(last.low, high, last.low_closed, high_closed)
    return result
