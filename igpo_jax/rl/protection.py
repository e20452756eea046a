"""Which tokens of a ground-truth completion give its answer away, and must never be shown as hints.

Two things are protected: the *answer statement* (an ``<answer>`` block, ``####`` or "the answer is" with the rest of
its line, the last ``\\boxed{}``), and the *gold value* itself. Numbers are compared by value and as whole numbers: 1234
is found in "$1,234.00", 18 is not found in "118", "3.18" or "18,000". Signs are ignored: -18 gives 18 away.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from igpo_jax.errors import UserError, check_choice

#: statement: only the answer statement. value: also the gold value from the last reasoning line on. all_values: also
#: the gold value wherever it stands.
EXCLUDES = ("statement", "value", "all_values")

Span = tuple[int, int]

_THOUSANDS = r"(?:,\\!|\{,\}|\\,|,)"
_NUMBER = rf"\d{{1,3}}(?:{_THOUSANDS}\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d\s*\d)|\d+\s*/\s*\d+"
_NUMBERS = re.compile(_NUMBER)
_FRACTIONS = re.compile(_FRACTION)
_SIGN = r"[-−+]?\s*"
_UNIT = r"\\?%|\^\s*(?:\\circ|\{\\circ\})|\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\s[A-Za-z][A-Za-z ]*"
_PLAIN_GOLD = re.compile(
    rf"\$?(?:[A-Za-z]\s*=\s*)?{_SIGN}(?:\\?\$)?\s*{_SIGN}({_FRACTION}|{_NUMBER})\s*(?:{_UNIT})?\s*\.?\s*\$?"
)

_BLOCK = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL)
_PHRASE = re.compile(r"(?:####|\bthe\s+(?:final\s+)?answer\s+is\b).*", re.IGNORECASE)
_BOX = re.compile(r"\\f?boxed\s*\{")
_TAG = re.compile(r"<[^<>]*>")

_PIECE = re.compile(r"\\[A-Za-z]+|\\.|\w+|\S")
_SPACING = {"\\left", "\\right", "\\!", "\\,", "\\;", "\\ ", "$"}
_FILLER = r"(?:\s|\\left|\\right|\\[!,; ])*"


def protected_tokens(text: str, offsets: np.ndarray, gold: str, exclude: str = "value") -> np.ndarray:
    """Tokens of a ground-truth completion that no hint may show.

    The paper (arXiv 2509.10396) excludes "answer tokens" without defining them; this is our definition. The last
    reasoning line is the last line with words or digits that no answer statement touches; in a trace without one (all
    on a single line) everything counts as the last line.

    Args:
      text: the completion, reasoning and answer statement.
      offsets: (n, 2) int, start and end character of each token in ``text``.
      gold: the answer, for example "1,234", "\\frac{3}{4}" or "x+1".
      exclude: one of ``EXCLUDES``.

    Returns:
      (n,) bool, True where a token shares a character with something protected.

    Raises:
      UserError: ``exclude`` is unknown or ``gold`` is empty.
    """
    check_choice("rl.hints.exclude", exclude, EXCLUDES)
    statements = statement_spans(text)
    spans = list(statements)
    if exclude != "statement":
        start = _last_reasoning_line(text, statements) if exclude == "value" else 0
        spans += [span for span in value_spans(text, gold) if span[1] > start]
    return _overlaps(len(text), offsets, spans)


def value_visible(text: str, offsets: np.ndarray, gold: str, placed: np.ndarray) -> bool:
    """Whether the placed tokens show the gold value whole, at any of the places where the text has it.

    Args:
      text: the completion.
      offsets: (n, 2) int, start and end character of each token.
      gold: the answer.
      placed: (n,) bool, True on the tokens that are shown.
    """
    for span in value_spans(text, gold):
        touching = _overlaps(len(text), offsets, [span])
        if touching.any() and placed[touching].all():
            return True
    return False


def statement_spans(text: str) -> list[Span]:
    """Character spans of answer statements: ``<answer>`` blocks, ``####`` and "the answer is" lines, the last box."""
    spans = [match.span() for pattern in (_BLOCK, _PHRASE) for match in pattern.finditer(text)]
    boxes = list(_BOX.finditer(text))
    if boxes:
        spans.append((boxes[-1].start(), _closing_brace(text, boxes[-1].end())))
    return spans


def value_spans(text: str, gold: str) -> list[Span]:
    """Character spans where ``text`` states the gold value.

    Args:
      text: any text.
      gold: the answer. A number or fraction, with or without "$", "%", a unit or "x =", is compared by value; anything
        else is looked for as written, up to spacing, ``\\left``/``\\right`` and the kind of ``\\frac``.

    Returns:
      (start, end) pairs.

    Raises:
      UserError: ``gold`` is empty.
    """
    if not gold.strip(" \t\n$"):
        raise UserError("the gold answer is empty, expected a number or an expression; give every row its answer")
    plain = _PLAIN_GOLD.fullmatch(gold.strip())
    if plain is None:
        return [match.span() for match in _literal(gold).finditer(text)]
    value = _value(plain.group(1))
    return [span for span, stated in _stated_values(text, value.denominator > 1) if stated == value]


def _stated_values(text: str, fractions: bool) -> Iterator[tuple[Span, Fraction]]:
    """Every number in ``text``; with ``fractions`` also a/b and \\frac{a}{b} (else 36/2 would pass for 18)."""
    for match in _NUMBERS.finditer(text):
        yield match.span(), _value(match.group())
    if fractions:
        for match in _FRACTIONS.finditer(text):
            yield match.span(), _value(match.group())


def _value(literal: str) -> Fraction:
    """The absolute value of a number or fraction as matched above; x/0 counts as 0."""
    if re.fullmatch(_FRACTION, literal):
        digits = re.findall(r"\d+", literal)
        top, bottom = digits if len(digits) == 2 else digits[0]
        return Fraction(int(top), int(bottom)) if int(bottom) else Fraction(0)
    return Fraction(re.sub(_THOUSANDS, "", literal))


def _literal(gold: str) -> re.Pattern[str]:
    """A pattern for a gold answer that is not a number; it must not continue into a longer word or number."""
    pieces = [piece for piece in _PIECE.findall(gold) if piece not in _SPACING]
    escaped = [r"\\[dt]?frac" if re.fullmatch(r"\\[dt]?frac", piece) else re.escape(piece) for piece in pieces]
    before = r"(?<!\w)(?<!\d[.,])" if re.match(r"\w", pieces[0]) else ""
    after = r"(?!\w)(?![.,]\d)" if re.search(r"\w\Z", pieces[-1]) else ""
    return re.compile(before + _FILLER.join(escaped) + after)


def _closing_brace(text: str, start: int) -> int:
    """One past the brace that closes the one before ``start``; the end of the text where none does."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def _last_reasoning_line(text: str, statements: list[Span]) -> int:
    """Where the last line starts that has words or digits outside tags and that no statement touches; 0 without one."""
    found = start = 0
    for line in text.splitlines(keepends=True):
        end = start + len(line)
        touched = any(a < end and start < b for a, b in statements)
        if not touched and any(letter.isalnum() for letter in _TAG.sub("", line)):
            found = start
        start = end
    return found


def _overlaps(length: int, offsets: np.ndarray, spans: list[Span]) -> np.ndarray:
    """(n,) bool: tokens that share a character with a span; a token without characters lies where it starts."""
    marked = np.zeros(length + 2, dtype=np.int64)
    for start, end in spans:
        marked[start + 1 : end + 1] = 1
    before = np.cumsum(marked)
    offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    return before[ends] > before[offsets[:, 0]]
