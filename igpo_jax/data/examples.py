"""One question with its answer and its worked solution: the record that every data set is turned into."""

import dataclasses
import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")

#: ``trace_source`` of a row without a worked solution.
NO_TRACE = "none"


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of text. Every field is plain ``str``; no field is ever evaluated or rendered as markup."""

    #: Unique inside its data set: the row's own id, or made of the source and the row, e.g. ``train-17``.
    id: str
    question: str
    #: The answer as a completion states it, alone and without thousands commas, e.g. ``1080`` or ``(44+35)+19``.
    answer: str
    #: The worked solution without its final answer line; empty where the source has none.
    reasoning: str
    #: Who wrote the solution, ``KIND:NAME``: ``human:gsm8k``, ``teacher:deepseek-r1``, ``rewritten:MODEL``,
    #: ``program:chain``; ``none`` without a solution. A user's file may hold any other text.
    trace_source: str
    #: What the judge holds completions against; empty here means ``answer``. Countdown's puzzle, for example.
    gold: str = ""

    def __post_init__(self) -> None:
        if not self.gold:
            object.__setattr__(self, "gold", self.answer)


def numbers_in(text: str) -> list[Decimal]:
    """Returns every decimal number written in ``text``, thousands commas removed."""
    found = []
    for match in _NUMBER.finditer(text):
        value = _as_number(match.group())
        if value is not None:
            found.append(value)
    return found


def answer_in_trace(reasoning: str, answer: str) -> bool:
    """Returns whether ``reasoning`` states ``answer``: a number by its value (10 is 10.00), other text verbatim."""
    gold = _as_number(answer)
    if gold is None:
        return answer in reasoning
    stated = numbers_in(reasoning)
    # "5-3" reads as 5 and -3, "$-3" as -3: a sign glued to a digit may be a minus or a dash, so both readings count.
    return gold in stated or -gold in stated


def _as_number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
