"""From parsed rows to splits: the division by question, and the rules for rows that cannot or should not be used."""

import collections
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from igpo_jax.data.examples import Example, answer_in_trace
from igpo_jax.data.files import file_sha256 as file_sha256
from igpo_jax.data.files import read_json_lines as read_json_lines
from igpo_jax.data.files import read_rows
from igpo_jax.data.files import require_file as require_file
from igpo_jax.data.fingerprints import public_homes
from igpo_jax.data.parsers import Parsed
from igpo_jax.data.parsers import parse_gsm8k as parse_gsm8k
from igpo_jax.data.parsers import parse_row as parse_row
from igpo_jax.data.parsers import plain_answer as plain_answer
from igpo_jax.data.settings import DataSettings
from igpo_jax.errors import UserError

#: Turns one object into text, or into the reason for which the row is dropped; the second argument says where it
#: stands, for error messages.
Parser = Callable[[dict[str, Any], str], Parsed | str]

#: Files by role: sft, rl, test, train (divided between sft and rl) or all (divided between the three).
Files = Mapping[str, pathlib.Path | Sequence[pathlib.Path]]


def read_splits(
    files: Files, parsers: Mapping[str, Parser], settings: DataSettings
) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """Reads files into splits ``sft``, ``rl`` and ``test``.

    A file called ``sft``, ``rl`` or ``test`` is that split. ``train`` is divided between sft and rl, ``all`` between
    the three, by a hash of the question: the division does not depend on the order of the rows, and rows with the
    same question stay together. A training row without a solution is for RL only.

    Args:
        files: paths by role, a role being one of the five names above.
        parsers: the row parser by role.
        settings: fractions, seed, and the rules for bad rows.

    Returns:
        The splits, and a report of rows read and dropped (JSON values).

    Raises:
        UserError: a file or row is bad, an id is used twice, a question is in two splits, or no row is left.
    """
    sorter = _Sorter(settings)
    for role in _in_reading_order(files, settings):
        sorter.roles.append(role)
        for number, (place, parsed) in enumerate(_parsed(files[role], parsers[role])):
            sorter.add(role, number, place, parsed)
    if not any(sorter.splits.values()):
        paths = [str(path) for role in files for path in _paths(files[role])]
        why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorter.dropped.items())
        raise UserError(
            f"no row of {', '.join(paths)} is left ({why}): check the fields; where no solution states its answer,"
            " data.on_missing_answer 'keep' uses the rows all the same"
        )
    return sorter.splits, sorter.report()


def _in_reading_order(files: Files, settings: DataSettings) -> list[str]:
    # A test question is known before the training row that repeats it, where that row is to be dropped.
    return sorted(files, key=lambda role: role != "test") if settings.on_shared_question == "drop" else list(files)


def _paths(given: pathlib.Path | Sequence[pathlib.Path]) -> Sequence[pathlib.Path]:
    return [given] if isinstance(given, pathlib.Path) else given


def _parsed(paths: pathlib.Path | Sequence[pathlib.Path], parser: Parser) -> Iterator[tuple[str, Parsed | str]]:
    for path in _paths(paths):
        for place, row in read_rows(path):
            yield place, parser(row, place)


class _Sorter:
    """Gives rows to splits one after the other, and counts those that are dropped."""

    def __init__(self, settings: DataSettings):
        self.settings = settings
        self.splits: dict[str, list[Example]] = {"sft": [], "rl": [], "test": []}
        self.roles: list[str] = []
        self.read: collections.Counter[str] = collections.Counter()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.unsaid: collections.Counter[str] = collections.Counter()
        self.public: collections.Counter[str] = collections.Counter()
        self.shared = 0
        self._homes: dict[str, tuple[str, str]] = {}
        self._ids: dict[str, str] = {}

    def add(self, role: str, number: int, place: str, parsed: Parsed | str) -> None:
        """Puts one row where it belongs."""
        self.read[role] += 1
        if isinstance(parsed, str):
            self.dropped[parsed] += 1
            return
        split = _split_of(role, parsed, self.settings)
        reason = (
            self._shared_question(parsed, split, place)
            or self._public_question(parsed, split, place)
            or self._trace(parsed, split, place)
        )
        if reason:
            self.dropped[reason] += 1
            return
        self.splits[split].append(
            Example(
                id=self._id(parsed, role, number, place),
                question=parsed.question,
                answer=parsed.answer,
                reasoning=parsed.reasoning,
                trace_source=parsed.trace_source,
                gold=parsed.gold,
            )
        )

    def _id(self, parsed: Parsed, role: str, number: int, place: str) -> str:
        chosen = parsed.id or f"{role}-{number}"
        first = self._ids.setdefault(chosen, place)
        if first != place:
            raise UserError(f"{place}: the id '{chosen}' is already that of {first}; give every row an id of its own")
        return chosen

    def _shared_question(self, parsed: Parsed, split: str, place: str) -> str:
        home, first = self._homes.setdefault(_same(parsed.question), (split, place))
        if home == split:
            return ""
        self.shared += 1
        if self.settings.on_shared_question == "error":
            raise UserError(
                f"{place} ({split}) repeats the question of {first} ({home}): {parsed.question[:60]!r}; remove it from"
                " one of them, or set data.on_shared_question to 'drop' (the training row) or 'keep'"
            )
        return "shared_question" if self.settings.on_shared_question == "drop" and split != "test" else ""

    def _public_question(self, parsed: Parsed, split: str, place: str) -> str:
        names = () if split == "test" else public_homes(parsed.question)
        self.public.update(names)
        if not names or self.settings.on_test_overlap == "keep":
            return ""
        if self.settings.on_test_overlap == "error":
            raise UserError(
                f"{place} ({split}) asks a question of the test set {names[0]}: {parsed.question[:60]!r}; remove it, or"
                " set data.on_test_overlap to 'drop'"
            )
        return "in_a_public_test_set"

    def _trace(self, parsed: Parsed, split: str, place: str) -> str:
        if not parsed.reasoning:
            return "no_solution" if split == "sft" else ""
        if answer_in_trace(parsed.reasoning, parsed.answer):
            return ""
        self.unsaid[split] += 1
        # A test question is judged by its answer alone: dropping it would change what is measured.
        if split == "test" or self.settings.on_missing_answer == "keep":
            return ""
        if self.settings.on_missing_answer == "error":
            raise UserError(
                f"{place}: the solution never states its answer '{parsed.answer}'; correct the row, or set"
                " data.on_missing_answer to 'drop'"
            )
        return "answer_not_in_solution"

    def report(self) -> dict[str, Any]:
        """What was read, dropped and noticed."""
        return {
            "read": {role: self.read[role] for role in self.roles},
            "dropped": dict(self.dropped),
            "answer_not_in_trace": dict(self.unsaid),
            "on_missing_answer": self.settings.on_missing_answer,
            "shared_questions": self.shared,
            "in_public_test_sets": dict(self.public),
        }


def _split_of(role: str, parsed: Parsed, settings: DataSettings) -> str:
    if role in ("sft", "rl", "test"):
        return role
    if role == "all" and _share("test", parsed.question, settings.seed) < settings.test_fraction:
        return "test"
    if not parsed.reasoning:
        return "rl"
    return "sft" if _share("sft", parsed.question, settings.seed) < settings.sft_fraction else "rl"


def _share(purpose: str, question: str, seed: int) -> float:
    digest = hashlib.sha256(f"{purpose}/{seed}/{_same(question)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _same(question: str) -> str:
    return " ".join(question.casefold().split())
