r"""Finding the final answer in the text that a diffusion model wrote; the working is never mistaken for it.

Diffusion text is damaged in its own ways: a box without its backslash, a box or a tag that never closes, an empty or
template box after right working. The places that count, in order: the last box of any spelling, the answer tag, the
line after ``####``, the rest of a sentence such as "The answer is", and a completion that is one value and nothing
else. A later box always replaces an earlier one, also where the later one says nothing.
"""

import re
from dataclasses import dataclass

from igpo_jax.rewards.numbers import plain_number

#: Longer completions are cut from the left, as the final answer stands at the end.
MAX_TEXT = 200_000

_END_TOKEN = re.compile(r"<\|(?:eot_id|endoftext|im_end|eos)\|>|</s>")
# a backspace stands where a template wrote "\b" in a string that was not raw
_BOX = re.compile(r"(?:\bboxed|\bfbox|\x08oxed)\s{0,3}\{", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</\s?[a-z]{0,12}\s?>?", re.IGNORECASE)
_DAMAGED_TAG = re.compile(r"<\s?/\s?[a-z]{0,12}\s?[>}]?$|<(?:ans|reas)[a-z]{0,8}[>}]?$", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ \t]{0,20}\n")
_TAG = re.compile(r"<\s?answer\s?>", re.IGNORECASE)
_HASHES = re.compile(r"####(?!#)\s{0,40}([^\n]*)")
_HEADING = re.compile(r"\W{0,4}(?:step|part|case|solution|explanation|final\s{1,3}answer|answer)\b", re.IGNORECASE)
_OPENING = re.compile(r"(?:[*:\s]|\\\[|\$\$(?=\s))*")
_PHRASE = re.compile(
    r"\banswer\s{1,3}is\b|\bfinal\s{1,3}answer\b(?:\s{1,3}is\b)?|\banswer(?=\s{0,2}\**\s{0,2}:)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)")
_MASK = re.compile(r"<\|?(?:mdm_)?mask\|?>|\[MASK\]", re.IGNORECASE)
_NOTHING = re.compile(r"(?:[\s.…_?{}]|\\[lcd]?dots\b|\\?boxed\b)*")
_TEMPLATE = re.compile(
    r"[<\[({]{0,3}\s?(?:(?:insert|put|place|enter|write|your|the|my|final|numeric|numerical|correct)\s)*"
    r"(?:answer|result|solution|number|value|expression)(?:\s(?:goes\s)?here)?\s?[>\])}]{0,3}\.{0,3}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Extraction:
    """The final answer of a completion and the place where it stood.

    Attributes:
        answer: the answer's text, None where the completion gives none.
        source: "box", "open box", "tag", "hashes", "phrase", "bare" or "none".
    """

    answer: str | None
    source: str


def extract_answer(text: str) -> Extraction:
    """Finds the final answer of a completion; never raises, and takes time linear in the text."""
    text = _END_TOKEN.split(text, maxsplit=1)[0][-MAX_TEXT:]
    for find in (_from_box, _from_tag, _from_hashes, _from_phrase, _from_bare):
        found = find(text)
        if found is not None:
            answer = _tidy(found[0])
            return Extraction(None if _MASK.search(found[0]) or _is_placeholder(answer) else answer, found[1])
    return Extraction(None, "none")


def _from_box(text: str) -> tuple[str, str] | None:
    start = _end_of_last(_BOX, text)
    if start is None:
        return None
    while start < len(text) and text[start].isspace():
        start += 1
    ends = [found.start() for found in (_CLOSING_TAG.search(text, start), _BLANK_LINE.search(text, start)) if found]
    stop = min([*ends, len(text)])
    end = _closing_brace(text, start, stop)
    if end is not None:
        return text[start:end], "box"
    line = text.find("\n", start, stop)
    return text[start : line if line >= 0 else stop], "open box"


def _end_of_last(pattern: re.Pattern[str], text: str) -> int | None:
    end = None
    for found in pattern.finditer(text):
        end = found.end()
    return end


def _closing_brace(text: str, start: int, stop: int) -> int | None:
    """Where the brace that is open at ``start`` closes; escaped braces do not count."""
    depth, position = 1, start
    while position < stop:
        letter = text[position]
        if letter == "\\":
            position += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def _from_tag(text: str) -> tuple[str, str] | None:
    tags = list(_TAG.finditer(text))
    if not tags:
        return None
    if len(tags) > 1 and _stands_for_a_closing_tag(text, tags[-2], tags[-1]):
        text, tags = text[: tags[-1].start()], tags[:-1]
    start = tags[-1].end()
    tag = _CLOSING_TAG.search(text, start)
    content = text[start : tag.start() if tag else len(text)]
    inner = _from_hashes(content) or _from_phrase(content)
    return (inner[0] if inner else content), "tag"


def _stands_for_a_closing_tag(text: str, before: re.Match[str], last: re.Match[str]) -> bool:
    """Whether the last opening tag has nothing behind it and the one before is still open: "<answer>18<answer>"."""
    return not text[last.end() :].strip() and not _CLOSING_TAG.search(text, before.end(), last.start())


def _from_hashes(text: str) -> tuple[str, str] | None:
    answer = None
    for found in _HASHES.finditer(text):
        if not _HEADING.match(found[1]):
            answer = found[1]
    if answer is None:
        return None
    phrase = _from_phrase(answer)
    return (phrase[0] if phrase else answer), "hashes"


def _from_phrase(text: str) -> tuple[str, str] | None:
    start = _end_of_last(_PHRASE, text)
    if start is None:
        return None
    line = _OPENING.sub("", text[start:], count=1).split("\n", maxsplit=1)[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0], "phrase"


def _from_bare(text: str) -> tuple[str, str] | None:
    return (text, "bare") if len(text) <= 200 and plain_number(text) is not None else None


def _tidy(answer: str) -> str:
    """The answer without white space, markdown emphasis and damaged tags around it."""
    answer = answer.strip()
    tail = answer[-16:]
    answer = answer[: len(answer) - len(tail)] + _DAMAGED_TAG.sub("", tail)
    return answer.removesuffix(">").strip().strip("*").strip()


def _is_placeholder(answer: str) -> bool:
    bare = " ".join(answer.replace("\\text{", "{").strip(" $*").split())
    return len(bare) <= 80 and bool(_NOTHING.fullmatch(bare) or _TEMPLATE.fullmatch(bare))
