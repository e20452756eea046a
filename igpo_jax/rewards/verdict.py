"""One verdict on one completion: the part that needs no worker process, and the whole of it for a single process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from igpo_jax.errors import check_choice
from igpo_jax.rewards.equality import compare, compare_quickly
from igpo_jax.rewards.extraction import extract_answer
from igpo_jax.rewards.puzzles import judge_countdown, judge_sudoku

#: What a gold answer can be.
KINDS = ("math", "countdown", "sudoku")


@dataclass(frozen=True)
class Verdict:
    """The judgement of one completion.

    Attributes:
        correct: whether the completion's final answer equals the gold answer.
        answer: the final answer that was found, None where there is none.
        reason: a few words on why, for reports.
        timed_out: whether the comparison was stopped at a time or memory limit (then ``correct`` is False).
    """

    correct: bool
    answer: str | None
    reason: str
    timed_out: bool = False


class Judge(Protocol):
    """Whatever judges batches of completions: the pool of worker processes, or a journal before it."""

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (gold, completion) pairs, in order."""


@dataclass(frozen=True)
class Open:
    """A comparison that is still to be made: the final answer was found, a worker compares it with ``gold``."""

    gold: str
    answer: str


def judge_quickly(gold: str, text: str, kind: str) -> Verdict | Open:
    """The verdict where extraction, text and plain numbers settle it, else what a worker must compare."""
    answer = extract_answer(text).answer
    if answer is None:
        return Verdict(False, None, "no answer")
    if kind != "math":
        correct, reason = (judge_countdown if kind == "countdown" else judge_sudoku)(gold, answer)
        return Verdict(correct, answer, reason)
    quick = compare_quickly(gold, answer)
    return Open(gold, answer) if quick is None else Verdict(quick.equal, answer, quick.reason)


def judge_one(gold: str, text: str, kind: str = "math") -> Verdict:
    """Judges one completion in this process, without limits on time or memory (``JudgePool`` has both).

    Args:
        gold: the reference answer.
        text: the whole completion.
        kind: what ``gold`` is: "math", "countdown" (numbers and target) or "sudoku" (the solution).

    Raises:
        UserError: ``kind`` is unknown, or ``gold`` is not of that kind.
    """
    check_choice("judge kind", kind, KINDS)
    quick = judge_quickly(gold, text, kind)
    if isinstance(quick, Verdict):
        return quick
    full = compare(quick.gold, quick.answer)
    return Verdict(full.equal, quick.answer, full.reason)
