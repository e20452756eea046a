"""TFDS builders of Countdown and Sudoku 4x4: published test puzzles, training puzzles from a file or from a seed."""

import abc
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from igpo_jax.data import puzzles
from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.downloads import Downloads, Remote
from igpo_jax.data.examples import NO_TRACE, Example
from igpo_jax.data.files import file_sha256, read_rows
from igpo_jax.data.settings import DataSettings
from igpo_jax.errors import UserError

_D1 = "https://raw.githubusercontent.com/dllm-reasoning/d1/837888f22c21a5da91a0af2b0d7b19e81d9b47ec/dataset"
COUNTDOWN = Remote(
    f"{_D1}/countdown_cd3_test.jsonl", "9916f614621e26fb2b035ed4ea641e35e4fff0d533bb9b9c7bcaaa61017d88c6"
)
SUDOKU = Remote(f"{_D1}/4x4_test_sudoku.csv", "ef86c7c28ebef88484d85fda59b3909a7b621241aa1abf36343437dbc4a3ffb6")


class _Puzzles(ExampleBuilder):
    """Test puzzles of a file; training puzzles of ``train.*`` beside it, or made from ``settings.seed``."""

    REMOTE: ClassVar[Remote]
    #: Names of a folder's test file, the first that is there.
    TEST_FILES: ClassVar[Sequence[str]]

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the test file (``settings.path``, or by name in that folder) and the training file beside it."""
        if not settings.path:
            return {}
        path = pathlib.Path(settings.path)
        if path.is_file():
            return {"test": (path,)}
        test = next((path / name for name in cls.TEST_FILES if (path / name).is_file()), None)
        if test is None:
            raise UserError(f"{path} holds none of {', '.join(cls.TEST_FILES)}; {cls.HINT}, or leave data.path empty")
        train = sorted(path.glob("train.*"))[:1]
        return {"test": (test,), "train": (train[0],)} if train else {"test": (test,)}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the published test file."""
        return {"test": (cls.REMOTE,)}

    @classmethod
    def checksums(cls, settings: DataSettings, downloads: Downloads) -> dict[str, str]:
        """Returns the sha256 of the files, and of the code that makes puzzles and solutions."""
        return {**super().checksums(settings, downloads), "solver": file_sha256(puzzles.__file__)}

    @abc.abstractmethod
    def read_row(self, row: dict[str, Any], place: str, identity: str) -> Example:
        """Returns a puzzle of a file with its solution worked out."""

    @abc.abstractmethod
    def make(self, rng: random.Random, count: int, known: set[str], split: str) -> list[Example]:
        """Returns new puzzles; those in ``known`` (by `key`) are not drawn again."""

    @abc.abstractmethod
    def key(self, example: Example) -> str:
        """Returns what makes two puzzles the same."""

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft, rl and test; no training puzzle is a test puzzle."""
        files, settings = self.files(), self.builder_config.settings
        test = self._read(files["test"][0], "test")
        known = {self.key(example) for example in test}
        if "train" in files:
            return self._from_file(test, files["train"][0], known)
        splits = {"test": test}
        for split in ("rl", "sft"):
            rng = random.Random(f"{settings.seed}/{split}")
            splits[split] = self.make(rng, settings.chain_rows(split), known, split)
        return splits, {"read": {"test": len(test)}, "dropped": {}, "seed": settings.seed}

    def _read(self, path: pathlib.Path, role: str) -> list[Example]:
        return [self.read_row(row, place, f"{role}-{n}") for n, (place, row) in enumerate(read_rows(path))]

    def _from_file(
        self, test: list[Example], path: pathlib.Path, known: set[str]
    ) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        read = self._read(path, "train")
        kept = [example for example in read if self.key(example) not in known]
        with_trace = [example for example in kept if example.reasoning]
        cut = round(self.builder_config.settings.sft_fraction * len(with_trace))
        sft = {example.id for example in with_trace[:cut]}
        splits = {
            "sft": with_trace[:cut],
            "rl": [example for example in kept if example.id not in sft],
            "test": test,
        }
        dropped = {"in_test": len(read) - len(kept)}
        return splits, {"read": {"train": len(read), "test": len(test)}, "dropped": dropped}


class Countdown(_Puzzles):
    """Reach a target with three numbers; the 256 test puzzles of d1 (Apache-2.0)."""

    REMOTE, TEST_FILES = COUNTDOWN, ("countdown_cd3_test.jsonl", "test.jsonl")
    HINT = "set data.path to countdown_cd3_test.jsonl or its folder"

    def read_row(self, row: dict[str, Any], place: str, identity: str) -> Example:
        """Reads ``input`` "30,100,93" with ``output`` "23", or ``nums`` with ``target``."""
        numbers = row.get("nums", row.get("input"))
        if isinstance(numbers, str):
            numbers = numbers.split(",")
        try:
            values, target = [int(number) for number in numbers], int(row.get("target", row.get("output")))  # type: ignore
        except (TypeError, ValueError):
            raise UserError(
                f"{place}: expected the fields input '30,100,93' and output '23', or nums and target; the row has"
                f" {', '.join(sorted(row)) or 'no field at all'}"
            ) from None
        return self._example(identity, values, target)

    def _example(self, identity: str, numbers: list[int], target: int) -> Example:
        question, gold = puzzles.countdown_question(numbers, target), puzzles.countdown_gold(numbers, target)
        expression, steps = puzzles.solve_countdown(numbers, target) or ("", [])
        source = "program:countdown" if steps else NO_TRACE
        return Example(identity, question, expression or gold, "\n".join(steps), source, gold)

    def make(self, rng: random.Random, count: int, known: set[str], split: str) -> list[Example]:
        """Draws puzzles that have a solution with whole numbers throughout."""
        drawn = puzzles.make_countdown(rng, count, known)
        return [self._example(f"{split}-{n}", numbers, target) for n, (numbers, target) in enumerate(drawn)]

    def key(self, example: Example) -> str:
        """The numbers in order of size, and the target."""
        numbers, target = puzzles.json.loads(example.gold)
        return puzzles.countdown_gold(sorted(numbers), target)


class Sudoku(_Puzzles):
    """4x4 Sudoku; the 500 test puzzles of d1 (Apache-2.0), or SPG's later 256 by their file (MIT)."""

    REMOTE, TEST_FILES = SUDOKU, ("4x4_test_sudoku.csv", "test.csv")
    HINT = "set data.path to 4x4_test_sudoku.csv (d1) or test_sudoku_split_new.csv (SPG), or to a folder"

    def read_row(self, row: dict[str, Any], place: str, identity: str) -> Example:
        """Reads ``Puzzle`` and ``Solution``, 16 digits each, which have to agree."""
        puzzle, solution = str(row.get("Puzzle")), str(row.get("Solution"))
        agree = all(a in ("0", b) for a, b in zip(puzzle, solution, strict=False))
        if not re.fullmatch("[0-4]{16}", puzzle) or not re.fullmatch("[1-4]{16}", solution) or not agree:
            raise UserError(
                f"{place}: expected Puzzle (16 digits, 0 = empty) and Solution (16 digits from 1 to 4) that agree;"
                f" found {puzzle!r} and {solution!r}"
            )
        return self._example(identity, puzzle, solution)

    def _example(self, identity: str, puzzle: str, solution: str) -> Example:
        solutions, steps = puzzles.solve_sudoku(puzzle)
        traced = solutions[:1] == [solution]
        source = "program:sudoku" if traced else NO_TRACE
        return Example(identity, puzzles.sudoku_question(puzzle), solution, "\n".join(steps) if traced else "", source)

    def make(self, rng: random.Random, count: int, known: set[str], split: str) -> list[Example]:
        """Draws puzzles with exactly one solution."""
        drawn = puzzles.make_sudoku(rng, count, known)
        return [self._example(f"{split}-{n}", puzzle, solution) for n, (puzzle, solution) in enumerate(drawn)]

    def key(self, example: Example) -> str:
        """The 16 digits of the puzzle."""
        found = re.search(r"\d{16}", example.question)
        return found.group() if found else ""
