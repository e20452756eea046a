"""Equality of two trees: what may differ in form, what must agree in order, kind and number."""

import re

from igpo_jax.rewards.answers.nodes import Node
from igpo_jax.rewards.answers.reals import same_reals
from igpo_jax.rewards.answers.values import NoValue, approximate, close, points, same_value, symbols
from igpo_jax.rewards.answers.words import names

#: More members than this are compared in order only.
_MAX_UNORDERED = 40
_SCALARS = names("number symbol constant add multiply divide inverse power negate call factorial degrees")
_FUNCTION_NAMES = frozenset("fghpqFGHPQE")
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def same(left: Node, right: Node) -> bool:
    """Whether two answers are equal in value; what cannot be compared is not equal."""
    if left == right:
        return True
    left, right = _simplified(left), _simplified(right)
    if (left.kind == "relation") != (right.kind == "relation"):
        left, right = _unnamed(left), _unnamed(right)
    if left.kind in ("list", "set") or right.kind in ("list", "set") or _has_sign(left) or _has_sign(right):
        return _same_members(_members(left), _members(right)) or (_is_range(left, right) and same_reals(left, right))
    if left.kind == "relation" or right.kind == "relation":
        return _same_statement(left, right)
    if left.kind == "text" or right.kind == "text":
        return _same_words(left, right)
    if left.kind in _SCALARS and right.kind in _SCALARS:
        return _same_scalar(left, right)
    if left.kind == right.kind and left.kind in _COMPARERS:
        return _COMPARERS[left.kind](left, right)
    return _is_range(left, right) and same_reals(left, right)


# --- simplification -------------------------------------------------------------------------------------------------


def _simplified(node: Node) -> Node:
    if node.kind == "union" and node.name == "cup" and all(item.kind == "set" for item in node.items):
        return Node("set", tuple(member for item in node.items for member in item.items))
    if node.kind in ("multiply", "negate", "divide"):
        return _scaled_matrix(node)
    if node.kind == "relation" and set(node.name.split()) == {"="}:
        return _settled_chain(node)
    return node


def _scaled_matrix(node: Node) -> Node:
    """A scalar times a matrix as one matrix; any other tree as it is."""
    places = [place for place, item in enumerate(node.items) if item.kind == "matrix"]
    if len(places) != 1 or (node.kind == "divide" and places != [0]):
        return node

    def scaled(entry: Node) -> Node:
        return Node(node.kind, tuple(entry if place == places[0] else item for place, item in enumerate(node.items)))

    rows = node.items[places[0]].items
    return Node("matrix", tuple(Node("row", tuple(scaled(entry) for entry in row.items)) for row in rows))


def _settled_chain(node: Node) -> Node:
    """``x = 2 + 3 = 5`` as ``x = 5`` where the values agree, so that a wrong step is not overlooked."""
    first, *rest = node.items
    values = rest if _is_name(first) else list(node.items)
    if len(values) < 2 or any(map(symbols, values)) or not all(same(value, values[-1]) for value in values):
        return node
    return Node("relation", (first, values[-1]), "=") if _is_name(first) else values[-1]


# --- members --------------------------------------------------------------------------------------------------------


def _has_sign(node: Node) -> bool:
    return node.kind == "plusminus" or any(_has_sign(item) for item in node.items)


def _with_sign(node: Node, sign: str) -> Node:
    if node.kind == "plusminus":
        inner = _with_sign(node.items[0], sign)
        return inner if node.name == sign else Node("negate", (inner,))
    return Node(node.kind, tuple(_with_sign(item, sign) for item in node.items), node.name, node.value)


def _members(node: Node) -> list[Node]:
    """Members of a list or set (anything else is its only member), with plus-minus written out, without repeats."""
    items = node.items if node.kind in ("list", "set") else (node,)
    written_out: list[Node] = []
    for item in items:
        written_out.extend([_with_sign(item, "+"), _with_sign(item, "-")] if _has_sign(item) else [item])
    if len(written_out) > _MAX_UNORDERED:
        return written_out
    distinct: list[Node] = []
    for item in written_out:
        if not any(same(item, other) for other in distinct):
            distinct.append(item)
    return distinct


def _same_members(left: list[Node], right: list[Node]) -> bool:
    if len(left) != len(right):
        return False
    if len(left) > _MAX_UNORDERED:
        return _same_in_order(left, right)
    rest = list(right)
    for item in left:
        place = next((place for place, other in enumerate(rest) if same(item, other)), None)
        if place is None:
            return False
        rest.pop(place)
    return True


def _same_in_order(left: list[Node] | tuple[Node, ...], right: list[Node] | tuple[Node, ...]) -> bool:
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


# --- statements -----------------------------------------------------------------------------------------------------


def _same_statement(left: Node, right: Node) -> bool:
    if left.kind == right.kind:
        return _same_relations(left, right) or (_is_range(left, right) and same_reals(left, right))
    return _is_range(left, right) and same_reals(left, right)


def _unnamed(node: Node) -> Node:
    """What a name is said to be, ``x = 5`` or ``x \\in (0, 1)``; any other tree as it is."""
    if node.kind != "relation" or len(node.items) != 2 or node.name not in ("=", "in"):
        return node
    name, value = node.items
    if _is_name(name):
        return value
    return name if node.name == "=" and _is_name(value) else node


def _same_relations(left: Node, right: Node) -> bool:
    left, right = _oriented(left), _oriented(right)
    if left.name != right.name or len(left.items) != len(right.items):
        return False
    if _same_in_order(left.items, right.items):
        return True
    if len(left.items) != 2:
        return False
    if left.name == "=" and _is_name(left.items[0]) and _is_name(right.items[0]):
        words = "text" in (left.items[0].kind, right.items[0].kind)
        if words:
            return same(left.items[1], right.items[1])
    return left.name != "in" and _proportional(left, right)


def _oriented(node: Node) -> Node:
    """The relation with its inequalities pointing to the right."""
    signs = node.name.split()
    if not any(sign in (">", ">=") for sign in signs):
        return node
    return Node("relation", node.items[::-1], " ".join(_MIRRORED.get(sign, sign) for sign in reversed(signs)))


def _proportional(left: Node, right: Node) -> bool:
    """Whether the two sides' differences are proportional: the same equation, or inequality with a positive factor.

    Only with two or more symbols: ``3x + 5 = 20`` is the problem and ``x = 5`` its answer, though they are equivalent.
    """
    first, second = (Node("add", (node.items[0], Node("negate", (node.items[1],)))) for node in (left, right))
    free = symbols(first)
    if len(free) < 2 or free != symbols(second):
        return False
    ratios = []
    for point in points(free):
        try:
            top, bottom = approximate(first, point), approximate(second, point)
        except NoValue:
            continue
        if top == 0 or bottom == 0:
            return False
        ratios.append(top / bottom)
    constant = len(ratios) >= 3 and all(close(ratio, ratios[0]) for ratio in ratios)
    return constant and (left.name in ("=", "!=") or (ratios[0].imag == 0 and ratios[0].real > 0))


def _is_name(node: Node) -> bool:
    """Whether a tree names something rather than computes: ``x``, ``x_1``, ``AB``, ``f(x)``, words."""
    if node.kind in ("symbol", "text"):
        return True
    if node.kind == "constant":
        return node.name in ("i", "e")
    if node.kind == "bracket":
        return all(item.kind == "symbol" for item in node.items)
    if node.kind != "multiply" or not all(item.kind in ("symbol", "number") for item in node.items):
        return False
    if all(item.name.isupper() for item in node.items):
        return True
    return len(node.items) == 2 and node.items[0].name in _FUNCTION_NAMES


def _is_range(left: Node, right: Node) -> bool:
    """Whether at least one side is more than a bracket: only then is ``(1, 2)`` read as a set of real numbers."""
    kinds = {left.kind, right.kind}
    return bool(kinds & {"union", "relation"}) or "mathbb R" in (left.name, right.name)


# --- kinds ----------------------------------------------------------------------------------------------------------


def _same_scalar(left: Node, right: Node) -> bool:
    if _is_label(left) and _is_label(right):
        return False
    if len(left.name) == 1 and left.name.lower() == right.name.lower() and not (left.items or right.items):
        return True  # the letter of a choice
    try:
        return same_value(left, right)
    except NoValue:
        return False


def _is_label(node: Node) -> bool:
    """Three or more capitals in a row name something; their order matters."""
    capitals = all(item.kind == "symbol" and item.name.isupper() for item in node.items)
    return node.kind == "multiply" and len(node.items) >= 3 and capitals


def _same_words(left: Node, right: Node) -> bool:
    if left.kind == right.kind:
        return _letters(left.name) == _letters(right.name)
    words, other = (left, right) if left.kind == "text" else (right, left)
    if other.kind == "multiply" and len(words.name) == 1 and other.items[0].kind in ("symbol", "text"):
        return words.name == other.items[0].name.lower()  # a choice and its content, "(B) 12"
    letters = [item.name for item in (other.items if other.kind == "multiply" else (other,))]
    scalar = other.kind in ("symbol", "constant", "multiply") and all(letters)
    return scalar and _letters(words.name) == "".join(letters).lower()


def _letters(words: str) -> str:
    return re.sub(r"[.'\"()\s]|(?<=[a-z])-(?=[a-z])", "", words)


def _same_bracket(left: Node, right: Node) -> bool:
    kinds = left.name == right.name or (len(left.items) > 2 and {left.name, right.name} == {"()", "[]"})
    return kinds and _same_in_order(left.items, right.items)


def _same_matrix(left: Node, right: Node) -> bool:
    if [len(row.items) for row in left.items] != [len(row.items) for row in right.items]:
        return False
    return all(_same_in_order(a.items, b.items) for a, b in zip(left.items, right.items, strict=True))


def _same_union(left: Node, right: Node) -> bool:
    if left.name == right.name and left.name != "minus" and _same_members(list(left.items), list(right.items)):
        return True
    return same_reals(left, right)


def _same_ratio(left: Node, right: Node) -> bool:
    """Clock times agree figure by figure; ratios agree in proportion."""
    if len(left.items) != len(right.items) or (left.name and right.name and left.name != right.name):
        return False
    if (_is_clock(left) and _is_clock(right)) or len(left.items) > 2:
        return _same_in_order(left.items, right.items)
    (a, b), (c, d) = left.items, right.items
    return _same_scalar(Node("multiply", (a, d)), Node("multiply", (b, c))) and not _same_scalar(
        a, Node("negate", (a,))
    )


def _is_clock(node: Node) -> bool:
    hours, *rest = (item.name for item in node.items)
    return hours.isdigit() and len(hours) < 3 and all(part.isdigit() and len(part) == 2 for part in rest)


def _same_base(left: Node, right: Node) -> bool:
    return left.items == right.items and left.name.lstrip("0") == right.name.lstrip("0")


_COMPARERS = {
    "bracket": _same_bracket,
    "matrix": _same_matrix,
    "union": _same_union,
    "ratio": _same_ratio,
    "base": _same_base,
}
