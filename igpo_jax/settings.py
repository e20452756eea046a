"""Settings: nested frozen dataclasses to and from ``ml_collections`` configs, JSON and a Markdown table.

This module knows no concrete settings class. A field of a settings dataclass is the single declaration of a parameter:
its name, its type, its default and its comment; everything here is derived from that.
"""

import ast
import dataclasses
import hashlib
import inspect
import io
import json
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from igpo_jax.errors import UserError, nearest

T = TypeVar("T")

ABSENT = "(absent)"
_NAMES = {
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
    bool: "True or False (bool)",
    type(None): "None",
}


def to_dict(settings: Any) -> dict[str, Any]:
    """Returns a settings dataclass as nested dicts of plain values; tuples stay tuples."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        values[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """Returns a settings dataclass as a locked, type-safe, nested ``ConfigDict``."""
    return ml_collections.ConfigDict(_open_fields(to_dict(settings)), type_safe=True).lock()


def _open_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Makes None a placeholder for a value of any type, which an override may then fill."""
    opened = {}
    for name, value in values.items():
        if isinstance(value, dict):
            opened[name] = _open_fields(value)
        else:
            opened[name] = config_dict.placeholder(object) if value is None else value
    return opened


def from_config_dict(cls: type[T], config: Mapping[str, Any] | ml_collections.ConfigDict, path: str = "config") -> T:
    """Returns an instance of the settings dataclass ``cls`` filled from ``config``.

    A field that ``config`` lacks keeps its default. An int is accepted for a float and a list for a tuple; text is
    never read as a number.

    Args:
      cls: a frozen dataclass whose fields are int, float, str, bool, tuple[...], None or further dataclasses.
      config: nested mapping or ``ConfigDict``.
      path: what to call ``config`` in errors.

    Raises:
      UserError: for an unknown field, a value of the wrong type, or a value that the dataclass refuses.
    """
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise UserError(
            f"{path} is {_found(config)}, but it is a section; set its fields instead: {', '.join(_types(cls))}"
        )
    known = _types(cls)
    values = {}
    for name in config:
        field_path = f"{path}.{name}"
        if name not in known:
            raise UserError(f"{field_path} is not a field of {path}{nearest(name, known)}")
        values[name] = _convert(known[name], config[name], field_path)
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def to_json(settings: Any) -> str:
    """Returns a settings dataclass as indented JSON in field order."""
    return json.dumps(to_dict(settings), indent=2)


def from_json(cls: type[T], text: str, path: str = "config") -> T:
    """Returns the settings that ``to_json`` wrote; raises UserError naming ``path`` where they cannot be read."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); it was written by another program or cut short"
        ) from error
    return from_config_dict(cls, values, path)


def config_hash(settings: Any) -> str:
    """Returns 12 hex digits that two settings share exactly when every field is equal."""
    text = json.dumps(_jsonable(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changed_fields(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Returns ``(path, old value, new value)`` for every leaf in which two settings differ, in field order.

    Either side may be a dataclass or the mapping read back from its JSON; a field that one side lacks shows as
    ``ABSENT``.
    """
    before, after = dict(_leaves(_jsonable(old))), dict(_leaves(_jsonable(new)))
    paths = list(after) + [path for path in before if path not in after]
    pairs = [(path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in paths]
    return [(path, a, b) for path, a, b in pairs if a != b]


def field_paths(config: Mapping[str, Any] | ml_collections.ConfigDict) -> list[str]:
    """Returns the dotted path of every leaf of a nested config, in order."""
    return [path for path, _ in _leaves(config)]


def nearest_field(path: str, paths: list[str]) -> str:
    """Returns " (did you mean 'a.b'?)" for a mistyped dotted path, preferring a field with the same last name."""
    same_name = [known for known in paths if known.rpartition(".")[2] == path.rpartition(".")[2]]
    if len(same_name) == 1:
        return f" (did you mean '{same_name[0]}'?)"
    return nearest(path, same_name or paths)


def type_name(kind: Any) -> str:
    """Returns a type annotation of a field in words, as errors and tables show it."""
    if typing.get_origin(kind) is tuple:
        items = [item for item in typing.get_args(kind) if item is not Ellipsis]
        return f"a tuple of {' and '.join(type_name(item) for item in items)}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(type_name(choice) for choice in typing.get_args(kind))
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def describe(cls: Any, prefix: str = "") -> str:
    """Returns a Markdown table of every field of a settings dataclass: path, type, default and comment.

    The comment is the ``#:`` or trailing ``#`` comment of the field's line, or the ``#:`` lines right above it.

    Args:
      cls: a settings dataclass, or an instance whose values count as the defaults.
      prefix: put before every path, as in "config.".
    """
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for path, kind, value, comment in _documented(cls() if isinstance(cls, type) else cls, prefix):
        cells = (f"`{path}`", _short_type(kind), f"`{value!r}`", comment)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _documented(settings: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    comments, kinds = field_comments(type(settings)), _types(type(settings))
    for name, kind in kinds.items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            yield from _documented(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind, value, comments.get(name, "")


def field_comments(cls: type) -> dict[str, str]:
    """Returns the comment of every field that has one, read from the source of ``cls`` and its bases."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        notes = {
            token.start[0]: token.string.lstrip("#: ").rstrip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                comments[node.target.id] = _comment_of(node, lines, notes)
    return {name: text for name, text in comments.items() if text}


def _comment_of(node: ast.AnnAssign, lines: list[str], notes: dict[int, str]) -> str:
    above: list[str] = []
    number = node.lineno - 1
    while number >= 1 and lines[number - 1].lstrip().startswith("#:"):
        above.insert(0, notes[number])
        number -= 1
    # Lines are counted from 1; the comment of a field of several lines may stand on any of them.
    own = [notes[n] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in notes]
    return " ".join(above + own)


def _short_type(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _leaves(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in config:
        value = config[name]
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _jsonable(settings: Any) -> Any:
    """The mapping as JSON gives it back, so that a stored config compares equal to the one that wrote it."""
    values = to_dict(settings) if dataclasses.is_dataclass(settings) else settings
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return json.loads(json.dumps(values))


def _types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Returns ``value`` as an instance of the annotation ``kind``, or raises UserError naming ``path``."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return from_config_dict(typing.cast(type, kind), value, path)
    if origin is tuple:
        return _convert_tuple(kind, value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, value, path)
    if kind is float and type(value) is int:
        return float(value)
    # bool is a subclass of int, and neither stands for the other here.
    if kind not in _NAMES or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{path} is {_found(value)}, expected {type_name(kind)}; give it as {_example(kind)}")
    if kind is float and math.isnan(value):
        raise UserError(f"{path} is nan, expected {type_name(kind)}; a setting must be a definite number")
    return value


def _convert_tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise UserError(f"{path} is {_found(value)}, expected {type_name(kind)}; give it as {_example(kind)}")
    items = typing.get_args(kind)
    if items[-1:] == (Ellipsis,):
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise UserError(f"{path} has {len(value)} entries, expected {len(items)}; give it as {_example(kind)}")
    return tuple(
        _convert(item, entry, f"{path}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _convert_union(kind: Any, value: Any, path: str) -> Any:
    for choice in typing.get_args(kind):
        try:
            return _convert(choice, value, path)
        except UserError:
            continue
    raise UserError(f"{path} is {_found(value)}, expected {type_name(kind)}")


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return f"a section with the fields {', '.join(value)}"
    return f"{value!r} ({type(value).__name__})"


def _example(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        items = [item for item in typing.get_args(kind) if item is not Ellipsis]
        inner = ", ".join(_example(item) for item in items)
        return f"({inner},)" if len(items) == 1 else f"({inner})"
    return {int: "8", float: "0.5", str: "'name'", bool: "True"}.get(kind, "None")
