"""One row of each source as text: which field is the question, where the answer stands, who wrote the solution."""

import dataclasses
import math
import re
from typing import Any

from igpo_jax.data.examples import NO_TRACE
from igpo_jax.errors import UserError

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_ANSWER_LINE = "####"
_ANSWER_SENTENCE = "The answer is:"
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The text of one row before it is given to a split."""

    question: str
    answer: str
    #: Empty where the source has none.
    reasoning: str
    trace_source: str
    #: The row's own id; empty where it has none.
    id: str = ""
    #: What completions are judged by; empty = the answer.
    gold: str = ""


def text_field(row: dict[str, Any], field: str, place: str) -> str:
    """Returns a field as text without outer blanks; a number is written out.

    Raises:
        UserError: the field is missing, empty, or neither text nor a finite number.
    """
    value = row.get(field)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}: field '{field}' is {value}, expected text or a number; correct or remove the row")
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


def parse_row(row: dict[str, Any], place: str, need_reasoning: bool) -> Parsed:
    """Reads a user's row: ``question``, ``answer``, ``reasoning`` and, where given, ``id``, ``trace_source``, ``gold``.

    Raises:
        UserError: a field is missing; ``reasoning`` may be where ``need_reasoning`` is False.
    """
    has_reasoning = need_reasoning or row.get("reasoning") not in (None, "")
    return Parsed(
        question=text_field(row, "question", place),
        answer=plain_answer(text_field(row, "answer", place)),
        reasoning=text_field(row, "reasoning", place) if has_reasoning else "",
        trace_source=text_field(row, "trace_source", place) if "trace_source" in row else _source(has_reasoning),
        id=text_field(row, "id", place) if "id" in row else "",
        gold=text_field(row, "gold", place) if "gold" in row else "",
    )


def _source(has_reasoning: bool) -> str:
    return "file" if has_reasoning else NO_TRACE


def parse_gsm8k(row: dict[str, Any], place: str) -> Parsed:
    """Splits a GSM8K row: calculator marks ``<<...>>`` go, the last line ``#### n`` becomes the answer.

    Raises:
        UserError: a field is missing, or the solution has no ``####`` line.
    """
    question, solution = text_field(row, "question", place), text_field(row, "answer", place)
    reasoning, mark, answer = solution.rpartition(_ANSWER_LINE)
    if not mark or not answer.strip():
        raise UserError(f"{place}: the answer does not end in a line '#### <number>', but in {solution[-30:]!r}")
    reasoning = _CALCULATOR_MARK.sub("", reasoning).strip()
    return Parsed(question, answer.strip().replace(",", ""), reasoning, "human:gsm8k")


def parse_math(row: dict[str, Any], place: str) -> Parsed | str:
    """Reads a row of MATH or MATH-500: ``problem``, ``solution`` and ``answer``, one of the last two being enough.

    Where there is no field ``answer``, the content of the solution's last box is the answer, as the authors intend; a
    solution without a box is dropped.

    Raises:
        UserError: a field is missing.
    """
    question, solution = text_field(row, "problem", place), str(row.get("solution") or "").strip()
    if "answer" not in row and not solution:
        text_field(row, "answer", place)  # says what is missing
    answer = str(row["answer"] or "").strip() if "answer" in row else last_box(solution)
    if not answer:
        return "no_answer" if "answer" in row else "no_box_in_solution"
    return Parsed(question, answer, solution, "human:math" if solution else NO_TRACE, _unique_id(row))


def _unique_id(row: dict[str, Any]) -> str:
    value = row.get("unique_id")
    return value.strip() if isinstance(value, str) else ""


def last_box(text: str) -> str:
    r"""Returns the content of the last closed ``\boxed{...}`` of ``text``; empty where there is none."""
    for match in reversed(list(_BOX.finditer(text))):
        depth, start = 1, match.end()
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start:place].strip()
    return ""


def parse_amc(row: dict[str, Any], place: str) -> Parsed:
    """Reads a row of AMC: ``problem`` and ``answer``, a whole number that the files write as 27.0.

    Raises:
        UserError: a field is missing.
    """
    answer = text_field(row, "answer", place)
    return Parsed(text_field(row, "problem", place), re.sub(r"\.0+$", "", answer), "", NO_TRACE)


def parse_metamath(row: dict[str, Any], place: str) -> Parsed | str:
    """Reads a row of MetaMathQA: ``query`` and ``response``, of type GSM_AnsAug or MATH_AnsAug; others are dropped.

    The answer is what follows the last "The answer is:", or the last ``####`` where the response has no such sentence;
    both are taken off the solution. The responses were written by GPT-3.5-Turbo.

    Raises:
        UserError: a field is missing.
    """
    if text_field(row, "type", place) not in ("GSM_AnsAug", "MATH_AnsAug"):
        return "not_ansaug"
    question, response = text_field(row, "query", place), text_field(row, "response", place)
    reasoning, sentence, answer = response.rpartition(_ANSWER_SENTENCE)
    if not sentence:
        reasoning, sentence, answer = response.rpartition(_ANSWER_LINE)
    if not sentence or not answer.strip():
        return "no_answer_sentence"
    head, mark, repeated = reasoning.rpartition(_ANSWER_LINE)
    if mark and "\n" not in repeated.strip():
        reasoning = head
    return Parsed(question, plain_answer(_bare(answer)), reasoning.strip(), "teacher:gpt-3.5-turbo")


def _bare(answer: str) -> str:
    """The answer without the full stop and the dollar signs of a sentence."""
    answer = answer.strip().removesuffix(".").strip()
    inside = answer[1:-1]
    return inside.strip() if answer[:1] == answer[-1:] == "$" and inside and "$" not in inside else answer


def parse_openr1(row: dict[str, Any], place: str, trace: str) -> Parsed | str:
    """Reads a row of OpenR1-Math: ``problem``, ``answer`` and the first generation that was verified as correct.

    Args:
        row: with ``generations`` and, of equal length, ``correctness_math_verify``; or ``solution``.
        place: for error messages.
        trace: ``generation`` (thinking and summary), ``summary`` (what follows the thinking) or ``solution``.

    Raises:
        UserError: a field is missing.
    """
    question = text_field(row, "problem", place)
    answer = str(row.get("answer") or "").strip()
    if not answer:
        return "no_answer"
    if trace == "solution":
        return Parsed(question, answer, text_field(row, "solution", place), "human:numinamath")
    text = _verified(row, place)
    if text is None:
        return "no_verified_generation"
    thought = _THOUGHT.search(text)
    if "<think>" in text and thought is None:
        return "thinking_never_ends"
    summary = text[thought.end() :] if thought else text
    text = summary if trace == "summary" or thought is None else f"{thought[1].strip()}\n\n{summary.strip()}"
    return Parsed(question, answer, text.strip(), "teacher:deepseek-r1") if text.strip() else "no_summary"


def _verified(row: dict[str, Any], place: str) -> str | None:
    texts, marks = row.get("generations"), row.get("correctness_math_verify")
    if not isinstance(texts, list) or not isinstance(marks, list) or len(texts) != len(marks):
        raise UserError(
            f"{place}: expected lists 'generations' and 'correctness_math_verify' of equal length; the row has"
            f" {', '.join(sorted(row))}"
        )
    return next((text for text, mark in zip(texts, marks, strict=True) if mark and isinstance(text, str)), None)
