"""One verdict on one completion: what the worker processes run."""

from dataclasses import dataclass

from igpo_jax.rewards.equality import equal
from igpo_jax.rewards.extraction import extract_answer


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


def judge_one(gold: str, text: str, kind: str = "math") -> Verdict:
    """Judges one completion in this process, without limits on time or memory."""
    found = extract_answer(text)
    if found.answer is None:
        return Verdict(False, None, "no answer")
    correct = equal(gold, found.answer)
    return Verdict(correct, found.answer, "equal" if correct else "different")
