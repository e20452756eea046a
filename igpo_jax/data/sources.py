"""Reads question files: JSON lines with their line numbers, GSM8K's answer format, and the division into splits."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from igpo_jax.data.examples import Example, answer_in_trace
from igpo_jax.data.settings import DataSettings
from igpo_jax.errors import UserError

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_ANSWER_LINE = "####"


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The text of one row before it is given to a split."""

    question: str
    answer: str
    reasoning: str
    trace_source: str


#: Turns one JSON object into text; the second argument says where it stands, for error messages.
Parser = Callable[[dict[str, Any], str], Parsed]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file as 64 hexadecimal digits."""
    with pathlib.Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_file(path: pathlib.Path, hint: str) -> pathlib.Path:
    """Returns ``path``; raises `UserError` with ``hint`` as the next thing to try where it is not a file."""
    if not path.is_file():
        raise UserError(f"the data file {path} does not exist; {hint}")
    return path


def read_json_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns (place, object) for every line of ``path`` that is not blank; a place reads ``FILE line N``.

    Raises:
        UserError: the file is not UTF-8, a line is not a JSON object, or there is no line at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    # Not splitlines(): JSON text may hold U+2028 and the like, which would cut a row in two.
    lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no rows; expected one JSON object per line")
    return [(place, _json_object(line, place)) for place, line in lines]


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}); expected one object per line") from None
    if not isinstance(row, dict):
        raise UserError(f'{place} holds a {type(row).__name__}, expected an object like {{"question": ..., ...}}')
    return row


def text_field(row: dict[str, Any], field: str, place: str) -> str:
    """Returns a field as text without outer blanks; a number is written out.

    Raises:
        UserError: the field is missing, empty, or neither text nor a number.
    """
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = ", ".join(sorted(row)) or "no field at all"
        state = "is missing or empty" if value is None or isinstance(value, str) else f"is a {type(value).__name__}"
        raise UserError(f"{place}: field '{field}' {state}, expected text; the row has {found}")
    return value.strip()


def plain_answer(text: str) -> str:
    """Returns an answer without outer blanks, and without thousands commas where it is a number: 1,080 is 1080."""
    answer = text.strip()
    return answer.replace(",", "") if _GROUPED_NUMBER.fullmatch(answer) else answer


def parse_gsm8k(row: dict[str, Any], place: str) -> Parsed:
    """Splits a GSM8K row: calculator marks ``<<...>>`` go, the last line ``#### n`` becomes the answer.

    Raises:
        UserError: a field is missing, or the solution has no ``####`` line.
    """
    question, solution = text_field(row, "question", place), text_field(row, "answer", place)
    reasoning, mark, answer = solution.rpartition(_ANSWER_LINE)
    if not mark or not answer.strip():
        raise UserError(f"{place}: the answer does not end in a line '#### <number>', but in {solution[-30:]!r}")
    return Parsed(question, answer.strip().replace(",", ""), _CALCULATOR_MARK.sub("", reasoning).strip(), "gsm8k")


def parse_row(row: dict[str, Any], place: str, need_reasoning: bool) -> Parsed:
    """Reads a user's row: ``question``, ``answer``, ``reasoning`` and, where given, ``trace_source``.

    Raises:
        UserError: a field is missing; ``reasoning`` may be where ``need_reasoning`` is False.
    """
    has_reasoning = need_reasoning or row.get("reasoning") not in (None, "")
    return Parsed(
        question=text_field(row, "question", place),
        answer=plain_answer(text_field(row, "answer", place)),
        reasoning=text_field(row, "reasoning", place) if has_reasoning else "",
        trace_source=text_field(row, "trace_source", place) if "trace_source" in row else "file",
    )


def read_splits(
    files: Mapping[str, pathlib.Path], parsers: Mapping[str, Parser], settings: DataSettings
) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """Reads files into splits ``sft``, ``rl`` and ``test``.

    A file called ``sft``, ``rl`` or ``test`` is that split. ``train`` is divided between sft and rl, ``all`` between
    the three, by a hash of the question: the division does not depend on the order of the rows, and rows with the
    same question stay together.

    Args:
        files: path by role, a role being one of the five names above.
        parsers: the row parser by role.
        settings: fractions, seed, and the rules for bad rows.

    Returns:
        The splits, and a report of rows read and dropped (JSON values).

    Raises:
        UserError: a file or row is bad, a question is in two splits, or no row is left.
    """
    splits: dict[str, list[Example]] = {"sft": [], "rl": [], "test": []}
    homes: dict[str, tuple[str, str]] = {}
    unsaid: collections.Counter[str] = collections.Counter()
    shared = 0
    read = {}
    for role, path in files.items():
        rows = read_json_lines(path)
        read[role] = len(rows)
        for number, (place, row) in enumerate(rows):
            parsed = parsers[role](row, place)
            split = _split_of(role, parsed.question, settings)
            shared += _is_shared(parsed.question, split, place, homes, settings.on_shared_question)
            if not answer_in_trace(parsed.reasoning, parsed.answer):
                unsaid[split] += 1
                if _drops(parsed, split, place, settings.on_missing_answer):
                    continue
            splits[split].append(Example(id=f"{role}-{number}", **dataclasses.asdict(parsed)))
    if not any(splits.values()):
        raise UserError(
            f"no row of {', '.join(str(path) for path in files.values())} is left: no solution states its answer;"
            " check the fields, or set data.on_missing_answer to 'keep'"
        )
    report = {
        "read": read,
        "answer_not_in_trace": dict(unsaid),
        "on_missing_answer": settings.on_missing_answer,
        "shared_questions": shared,
    }
    return splits, report


def _split_of(role: str, question: str, settings: DataSettings) -> str:
    if role in ("sft", "rl", "test"):
        return role
    if role == "all" and _share("test", question, settings.seed) < settings.test_fraction:
        return "test"
    return "sft" if _share("sft", question, settings.seed) < settings.sft_fraction else "rl"


def _share(purpose: str, question: str, seed: int) -> float:
    digest = hashlib.sha256(f"{purpose}/{seed}/{_same(question)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _same(question: str) -> str:
    return " ".join(question.casefold().split())


def _is_shared(question: str, split: str, place: str, homes: dict[str, tuple[str, str]], rule: str) -> bool:
    home, first = homes.setdefault(_same(question), (split, place))
    if home == split:
        return False
    if rule == "error":
        raise UserError(
            f"{place} ({split}) repeats the question of {first} ({home}): {question[:60]!r}; remove it from one of"
            " them, or set data.on_shared_question to 'keep'"
        )
    return True


def _drops(parsed: Parsed, split: str, place: str, rule: str) -> bool:
    # A test question is judged by its answer alone: dropping it would change what is measured.
    if split == "test" or rule == "keep":
        return False
    if rule == "error":
        raise UserError(
            f"{place}: the solution never states its answer '{parsed.answer}'; correct the row, or set"
            " data.on_missing_answer to 'drop'"
        )
    return True
