"""The settings of the data: which set, where it lies, how it is split, and how hard the chain task is."""

import dataclasses
from typing import Any

from igpo_jax.errors import UserError, check_choice

#: Data sets with training questions, and those that are only for evaluation.
DATASETS = (
    "chain",
    "gsm8k",
    "math_train",
    "metamath",
    "openr1",
    "countdown",
    "sudoku",
    "jsonl",
    "math500",
    "amc23",
    "amc22_23",
)
TEST_ONLY = ("math500", "amc23", "amc22_23")
SPLITS = ("sft", "rl", "test")
#: What ``data.trace`` may take from a row of OpenR1-Math.
TRACES = ("generation", "summary", "solution")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which questions are used. The chain fields are read by the chain task only, the file fields by the others.

    Raises:
        UserError: a field has a value outside its range.
    """

    #: Data set of every split that has none of its own: ``chain`` (made here), ``gsm8k``, ``math_train``, ``metamath``,
    #: ``openr1``, ``countdown``, ``sudoku``, ``math500``, ``amc23``, ``amc22_23`` or ``jsonl`` (your own file).
    name: str = "chain"
    #: Its file or folder; empty = download it from its public home.
    path: str = ""
    #: Another data set for SFT; empty = ``name``.
    sft_name: str = ""
    #: Its file or folder; empty = download.
    sft_path: str = ""
    #: Another data set for RL; empty = ``name``.
    rl_name: str = ""
    #: Its file or folder; empty = download.
    rl_path: str = ""
    #: Another data set for evaluation; empty = ``name``.
    test_name: str = ""
    #: Its file or folder; empty = download.
    test_path: str = ""
    #: Folder for downloads and built data sets, to be shared between runs; empty = inside the run directory.
    cache: str = ""
    #: Share of the training questions that go to ``sft``; the others go to ``rl``. Only where both read the same set.
    sft_fraction: float = 0.5
    #: Share of the questions that go to ``test``, where the set has no test questions of its own.
    test_fraction: float = 0.1
    #: A training row whose solution never states its answer: ``drop`` (counted), ``keep`` (counted) or ``error``.
    on_missing_answer: str = "drop"
    #: A question found in two splits: ``error``, ``drop`` the training row (counted), or ``keep`` both (counted).
    on_shared_question: str = "error"
    #: A training row that asks a question of a public test set: ``keep`` (counted), ``drop`` (counted) or ``error``.
    on_test_overlap: str = "keep"
    #: openr1: ``generation`` (the teacher's whole trace), ``summary`` (its part after the thinking) or ``solution``
    #: (the data set's own, by humans).
    trace: str = "generation"
    #: Seed of the questions that are made here, and of the division of a file into splits.
    seed: int = 0
    #: Chain lengths (operations per question), dealt out in turn, so each length gets the same number of rows.
    sft_lengths: tuple[int, ...] = (1, 2, 3, 4)
    #: Chain lengths of the ``rl`` split.
    rl_lengths: tuple[int, ...] = (3, 4, 5, 6)
    #: Chain lengths of the ``test`` split.
    test_lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    #: Rows of the ``sft`` split, where questions are made here (chain, countdown, sudoku).
    sft_rows: int = 4000
    #: Rows of the ``rl`` split, where questions are made here.
    rl_rows: int = 2000
    #: Rows of the chain task's ``test`` split.
    test_rows: int = 300

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, DATASETS)
        for split in SPLITS:
            self._check_source(split)
        check_choice("data.on_missing_answer", self.on_missing_answer, ("drop", "keep", "error"))
        check_choice("data.on_shared_question", self.on_shared_question, ("error", "drop", "keep"))
        check_choice("data.on_test_overlap", self.on_test_overlap, ("keep", "drop", "error"))
        check_choice("data.trace", self.trace, TRACES)
        for field in ("sft_fraction", "test_fraction"):
            _check_share(field, getattr(self, field))
        for split in SPLITS:
            _check_lengths(f"{split}_lengths", self.chain_lengths(split))
            _check_rows(f"{split}_rows", self.chain_rows(split))

    def _check_source(self, split: str) -> None:
        name, path = getattr(self, f"{split}_name"), getattr(self, f"{split}_path")
        if name:
            check_choice(f"data.{split}_name", name, DATASETS)
        elif path:
            raise UserError(
                f"data.{split}_path is '{path}', but data.{split}_name is empty; set it to one of {', '.join(DATASETS)}"
            )

    def chain_lengths(self, split: str) -> tuple[int, ...]:
        """Returns the chain lengths of ``split``."""
        return {"sft": self.sft_lengths, "rl": self.rl_lengths, "test": self.test_lengths}[split]

    def chain_rows(self, split: str) -> int:
        """Returns the number of rows of ``split`` that are made here."""
        return {"sft": self.sft_rows, "rl": self.rl_rows, "test": self.test_rows}[split]

    def place(self, split: str) -> tuple[str, str]:
        """Returns name and path of the data set that ``split`` reads."""
        own = getattr(self, f"{split}_name")
        return (own, getattr(self, f"{split}_path")) if own else (self.name, self.path)

    def source(self, split: str) -> "DataSettings":
        """Returns the settings of the one data set that ``split`` reads.

        Where only one of sft and rl reads it, all its training questions go there; where ``test`` reads another set,
        none is held out. What does not concern the set has its default, so that equal sets are built once.
        """
        name, path = self.place(split)
        readers = [other for other in SPLITS if self.place(other) == (name, path)]
        unnamed: dict[str, Any] = {f"{other}_{field}": "" for other in SPLITS for field in ("name", "path")}
        training = {"sft": 1.0, "rl": 0.0}.get("".join(r for r in readers if r != "test"), self.sft_fraction)
        return dataclasses.replace(
            self,
            name=name,
            path=path,
            sft_fraction=training,
            test_fraction=self.test_fraction if "test" in readers else 0.0,
            cache="",
            **unnamed,
        )


def _check_share(field: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"data.{field} is {value}, expected a share from 0 to 1; set it to e.g. 0.5")


def _check_lengths(field: str, value: tuple[int, ...]) -> None:
    if not value or any(length < 1 for length in value):
        raise UserError(f"data.{field} is {value}, expected one or more chain lengths of at least 1, e.g. (2, 3)")


def _check_rows(field: str, value: int) -> None:
    if value < 1:
        raise UserError(f"data.{field} is {value}, expected at least 1 row; set it to e.g. 1000")
