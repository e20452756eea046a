"""The settings of the data: which set, where it lies, how it is split, and how hard the chain task is."""

import dataclasses

from igpo_jax.errors import UserError, check_choice

DATASETS = ("chain", "gsm8k", "jsonl")
SPLITS = ("sft", "rl", "test")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which questions are used. The chain fields are read by the chain task only, the file fields by the others.

    Raises:
        UserError: a field has a value outside its range.
    """

    #: ``chain`` (made here), ``gsm8k`` or ``jsonl`` (your own file).
    name: str = "chain"
    #: gsm8k: folder with train.jsonl and test.jsonl, empty = download. jsonl: a .jsonl file, or a folder of them.
    path: str = ""
    #: Share of the training questions that go to ``sft``; the others go to ``rl``.
    sft_fraction: float = 0.5
    #: Share of the questions that go to ``test``, where one file holds everything.
    test_fraction: float = 0.1
    #: A training row whose solution never states its answer: ``drop`` (counted), ``keep`` (counted) or ``error``.
    on_missing_answer: str = "drop"
    #: A question found in two files: ``error``, or ``keep`` (counted) where the overlap is intended.
    on_shared_question: str = "error"
    #: Seed of the chain task's questions, and of the division of a file into splits.
    seed: int = 0
    #: Chain lengths (operations per question), dealt out in turn, so each length gets the same number of rows.
    sft_lengths: tuple[int, ...] = (1, 2, 3, 4)
    #: Chain lengths of the ``rl`` split.
    rl_lengths: tuple[int, ...] = (3, 4, 5, 6)
    #: Chain lengths of the ``test`` split.
    test_lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    #: Rows of the chain task's ``sft`` split.
    sft_rows: int = 4000
    #: Rows of the chain task's ``rl`` split.
    rl_rows: int = 2000
    #: Rows of the chain task's ``test`` split.
    test_rows: int = 300

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, DATASETS)
        check_choice("data.on_missing_answer", self.on_missing_answer, ("drop", "keep", "error"))
        check_choice("data.on_shared_question", self.on_shared_question, ("error", "keep"))
        for field in ("sft_fraction", "test_fraction"):
            _check_share(field, getattr(self, field))
        for split in SPLITS:
            _check_lengths(f"{split}_lengths", self.chain_lengths(split))
            _check_rows(f"{split}_rows", self.chain_rows(split))

    def chain_lengths(self, split: str) -> tuple[int, ...]:
        """Returns the chain lengths of ``split``."""
        return {"sft": self.sft_lengths, "rl": self.rl_lengths, "test": self.test_lengths}[split]

    def chain_rows(self, split: str) -> int:
        """Returns the number of chain questions in ``split``."""
        return {"sft": self.sft_rows, "rl": self.rl_rows, "test": self.test_rows}[split]


def _check_share(field: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"data.{field} is {value}, expected a share from 0 to 1; set it to e.g. 0.5")


def _check_lengths(field: str, value: tuple[int, ...]) -> None:
    if not value or any(length < 1 for length in value):
        raise UserError(f"data.{field} is {value}, expected one or more chain lengths of at least 1, e.g. (2, 3)")


def _check_rows(field: str, value: int) -> None:
    if value < 1:
        raise UserError(f"data.{field} is {value}, expected at least 1 row; set it to e.g. 1000")
