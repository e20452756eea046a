"""Whether a rewritten trace may be trained on: the form, the length, and the judge's word on its answer."""

import dataclasses
import re

from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rewriting.client import Reply

ACCEPTED, REFUSED = "accepted", "refused"
_FORM = re.compile(r"<reasoning>(.*?)</reasoning>\s*<answer>(.*?)</answer>", re.DOTALL)
_THOUGHT = "</think>"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of one row.

    Attributes:
        reason: "accepted", or why not: cut_off, no_tags, empty, too_long, no_answer, wrong_answer, judge_stopped,
            refused.
        reasoning: the trace without its tags; "" where there is none.
        detail: the judge's or the server's words.
    """

    reason: str
    reasoning: str = ""
    detail: str = ""


def words_of(text: str) -> int:
    """Words of a text, counted by its blanks."""
    return len(text.split())


def decide(reply: Reply, gold: str, bound: int, slack: float, judge: JudgePool) -> Decision:
    """The decision on a reply.

    Args:
        reply: of kind "reply" or "refused".
        gold: the row's answer.
        bound: words that the row was given.
        slack: a trace may have this multiple of ``bound``.
        judge: compares the boxed answer with ``gold``.
    """
    if reply.kind == "refused":
        return Decision(REFUSED, detail=reply.problem)
    if reply.finish_reason == "length":
        return Decision("cut_off")
    form = _FORM.search(reply.text.rpartition(_THOUGHT)[2])
    if form is None:
        return Decision("no_tags")
    reasoning, answer = form[1].strip(), form[2].strip()
    if not reasoning:
        return Decision("empty")
    if words_of(reasoning) > slack * bound:
        return Decision("too_long", reasoning, f"{words_of(reasoning)} words, bound {bound}")
    # The answer's own part alone: a right value in the reasoning does not make a wrong box right.
    verdict = judge.judge([(gold, f"<answer>\n{answer}\n</answer>")])[0]
    if verdict.correct:
        return Decision(ACCEPTED, reasoning, verdict.reason)
    reason = "judge_stopped" if verdict.timed_out else "no_answer" if verdict.answer is None else "wrong_answer"
    return Decision(reason, reasoning, verdict.reason)
