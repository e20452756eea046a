"""Finding the final answer in the text that a diffusion model wrote; the working is never mistaken for it.

Diffusion text is damaged in its own ways: a box without its backslash, a box or a tag that never closes, an empty or
template box after right working. The order of the places that count is fixed: last box, answer tag, ``####``, phrase.
"""

import re
from dataclasses import dataclass

#: Longer completions are cut from the left: the final answer stands at the end.
MAX_TEXT = 200_000

_END_TOKEN = re.compile(r"<\|(?:eot_id|endoftext|im_end|eos)\|>|</s>")
_BOX = re.compile(r"(?:\\\s{0,3}|\x08)?(?:\b|(?<=\x08))(?:f|b)?ox(?:ed)?\s{0,3}\{")
_CLOSING_TAG = re.compile(r"</\s?[a-z]{0,12}\s?>?", re.IGNORECASE)
_DAMAGED_TAG = re.compile(
    r"\s*<\s?/?\s?(?:a|an|ans|answ|answe|answer|r|re|rea|reas|reaso|reason\w{0,3})?\s?>?\s*$", re.I
)
_TAG = re.compile(r"<\s?answer\s?>", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(?!#)([^\n]*)")
_PHRASE = re.compile(r"(?:\banswer\s+is\b\s*:?|\bfinal\s+answer\b\**\s*(?:is\b)?\s*:?|\banswer\**\s*:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)")
_MASK = re.compile(r"<\|mdm_mask\|>|\[MASK\]|<mask>|<\|mask\|>", re.IGNORECASE)
_TEMPLATE = re.compile(
    r"[<\[({]*\s*(?:insert |put |place )?(?:your|the|my|final|numeric(?:al)?|correct)*\s*(?:final\s+)?"
    r"(?:answer|result|solution|number|value|expression)\s*(?:here|goes here)?\s*[>\])}]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Extraction:
    """Where the final answer was found.

    Attributes:
        answer: the answer's text, None where the completion gives none.
        source: "box", "open_box", "tag", "hashes", "phrase", "bare" or "none".
    """

    answer: str | None
    source: str


def extract_answer(text: str) -> Extraction:
    """Finds the final answer of a completion; never raises and takes time linear in the text."""
    text = _END_TOKEN.split(text[-MAX_TEXT:], maxsplit=1)[0]
    for find in (_from_box, _from_tag, _from_hashes, _from_phrase):
        found = find(text)
        if found is not None:
            answer, source = found
            return Extraction(_refuse_placeholder(answer), source)
    return Extraction(None, "none")


def _from_box(text: str) -> tuple[str, str] | None:
    openings = list(_BOX.finditer(text))
    if not openings:
        return None
    start = openings[-1].end()
    end = _closing_brace(text, start)
    tag = _CLOSING_TAG.search(text, start)
    if end is not None and (tag is None or end < tag.start()):
        return _DAMAGED_TAG.sub("", text[start:end]).strip(), "box"
    stop = min(p for p in (text.find("\n", start), tag.start() if tag else -1, len(text)) if p >= start)
    return _DAMAGED_TAG.sub("", text[start:stop]).strip(), "open_box"


def _closing_brace(text: str, start: int) -> int | None:
    depth, position = 1, start
    while position < len(text):
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
    openings = list(_TAG.finditer(text))
    if not openings:
        return None
    content = text[openings[-1].end() :]
    tag = _CLOSING_TAG.search(content)
    content = content[: tag.start()] if tag else content
    inner = _from_hashes(content) or _from_phrase(content)
    return (inner[0] if inner else _DAMAGED_TAG.sub("", content).strip()), "tag"


def _from_hashes(text: str) -> tuple[str, str] | None:
    lines = _HASHES.findall(text)
    return (lines[-1].strip(), "hashes") if lines else None


def _from_phrase(text: str) -> tuple[str, str] | None:
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :].lstrip("*: \t\r\n")
    line = rest.split("\n", maxsplit=1)[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip("* \t"), "phrase"


def _refuse_placeholder(answer: str) -> str | None:
    bare = answer.strip(" \t\r\n$*")
    if not bare.strip(".… \\ldotscdots") or _MASK.search(bare) or _TEMPLATE.fullmatch(bare):
        return None
    return answer
