"""Saved rollouts packed for the page: every text once, tokens as numbers, flags as bits."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.pages.text import printable
from igpo_jax.reporting.runs import RunFolder

#: What the page filters by; the place in the list is the number of the bit.
FLAGS = ("all_wrong", "rescued", "replaced", "truncated", "no_answer", "correct", "hinted", "unused")
_LISTS = ("pieces", "hinted", "reveal_step")
_TEXTS = ("question", "gold", "trace", "completion", "reason")


class _Table:
    """Values, each kept once, and their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[Any]:
        return list(self._numbers)


def load(runs: Sequence[RunFolder], most: int) -> tuple[dict[str, Any], list[str]]:
    """Reads the saved rollouts of all runs and packs at most ``most`` of them.

    Where there are more, every file gives the same number of whole groups, its first ones (see ``_choose``).

    Args:
      runs: opened folders.
      most: completions that the page may hold.

    Returns:
      JSON-ready data (see ``_packed``), and one sentence for every line that could not be used.

    Raises:
      UserError: ``most`` is negative.
    """
    if most < 0:
        raise UserError(f"--rollouts is {most}, expected 0 (none) or more")
    remarks: list[str] = []
    files: list[_File] = []
    for number, run in enumerate(runs):
        for path in run.rollouts:
            stage, _, step = path.stem.rpartition("_")
            head = (number, stage or path.stem, int(step) if step.isdecimal() else 0)
            files.append((head, _groups(_read(path, remarks))))
    return _packed(_choose(files, most)) | {
        "total": _count(files),
        "files_total": sum(bool(groups) for _, groups in files),
    }, remarks


def _read(path: pathlib.Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The usable rows of a file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        remarks.append(f"{path} cannot be read ({error.strerror}); its rollouts are left out")
        return []
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            _check(row)
            rows.append(row)
        except (ValueError, RecursionError) as error:
            bad.append((number, error))
    if bad:
        others = f", and {len(bad) - 1} more lines," if len(bad) > 1 else ""
        what = "is" if len(bad) == 1 else "are"
        remarks.append(f"{path} line {bad[0][0]}{others} {what} left out: {bad[0][1]}")
    return rows


def _check(row: Any) -> None:
    """Raises ValueError where a row is not a saved rollout."""
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    for names, kind in (((*_TEXTS, "id"), str), (_LISTS, list), (("group",), int)):
        for name in names:
            if not isinstance(row.get(name), kind):
                raise ValueError(f"it has no {'text' if kind is str else kind.__name__} '{name}'")
    if len({len(row[name]) for name in _LISTS}) > 1:
        raise ValueError("pieces, hinted and reveal_step differ in length")
    if not all(isinstance(piece, str) for piece in row["pieces"]):
        raise ValueError("a piece is not a text")
    for name in ("hinted", "reveal_step", "kept"):
        values = row.get(name) or []
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise ValueError(f"'{name}' holds something that is not a whole number")


def _groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of each group, in the order of the groups."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return [groups[number] for number in sorted(groups)]


#: Run, stage and step of a file, and its rows by group.
_File = tuple[tuple[int, str, int], list[list[dict[str, Any]]]]


def _choose(files: Sequence[_File], most: int) -> list[_File]:
    """The first k groups of every file, for the largest k that ``most`` rows allow; files without any are left out.

    Where not even one group a file fits, the first group of some files, evenly spread.
    """
    files = [(head, groups) for head, groups in files if groups]
    k = 0
    while _count(_first(files, k)) < _count(_first(files, k + 1)) <= most:
        k += 1
    if k:
        return _first(files, k)
    for count in range(len(files), 0, -1):
        places = [round(i * (len(files) - 1) / max(1, count - 1)) for i in range(count)]
        spread = _first([files[place] for place in places], 1)
        if _count(spread) <= most:
            return spread
    return []


def _first(files: Sequence[_File], k: int) -> list[_File]:
    return [(head, groups[:k]) for head, groups in files]


def _count(files: Sequence[_File]) -> int:
    return sum(len(group) for _, groups in files for group in groups)


def _packed(files: Sequence[_File]) -> dict[str, Any]:
    """The page's data.

    ``files``: (run, stage, step). ``pieces``, ``questions`` (id, question, gold, trace), ``reasons``: tables. ``rows``:
    (file, group, place in the group, question, flags, reward, advantage, hint ratio, answer, reason, pieces, reveal
    steps, filtered hints), the last three as numbers in one text, which the page takes apart when it shows the row.
    """
    pieces, questions, reasons = _Table(), _Table(), _Table()
    rows = []
    for number, (_, groups) in enumerate(files):
        places: dict[int, int] = {}
        for row in (row for group in groups for row in group):
            place = places[row["group"]] = places.get(row["group"], -1) + 1
            question = questions(tuple(printable(row[name]) for name in ("id", "question", "gold", "trace")))
            rows.append(
                [
                    *(number, row["group"], place, question, _flags(row)),
                    *(_number(row.get(name)) for name in ("reward", "advantage", "hint_ratio")),
                    None if row.get("answer") is None else printable(str(row["answer"])),
                    reasons(printable(row["reason"])),
                    " ".join(str(pieces(printable(piece))) for piece in row["pieces"]),
                    " ".join(map(str, row["reveal_step"])),
                    " ".join(map(str, _dropped(row))),
                ]
            )
    tables = {"pieces": pieces.values, "questions": questions.values, "reasons": reasons.values}
    return {"flags": FLAGS, "files": [list(head) for head, _ in files], **tables, "rows": rows}


def _flags(row: dict[str, Any]) -> int:
    """The row's bits. Logs of older versions lack some fields, which then follow from others."""
    unused = row.get("learnt_from") is False
    values = {
        "all_wrong": row.get("all_wrong"),
        "rescued": row.get("rescued"),
        "replaced": row.get("replaced", not unused and row.get("round") == "second"),
        "truncated": row.get("truncated", bool(row["pieces"]) and row["pieces"][-1] != ""),
        "no_answer": row.get("answer") is None,
        "correct": row.get("correct"),
        "hinted": any(row["hinted"]),
        "unused": unused,
    }
    return sum(1 << bit for bit, name in enumerate(FLAGS) if values[name])


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    return round(float(value), 4) if usable else None


def _dropped(row: dict[str, Any]) -> list[int]:
    """Places of hint tokens that no update learns from, filtered or never hidden; none where nothing was learnt."""
    kept = row.get("kept") or []
    return [place for place, (hint, keep) in enumerate(zip(row["hinted"], kept, strict=False)) if hint and not keep]
