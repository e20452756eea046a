r"""Tokens of a cleaned answer: numbers, LaTeX commands, single-letter symbols, words and operators.

What LaTeX leaves open, plain text closes by convention: a run of letters is a name that the judge knows (``pi``,
``sqrt``), a word or unit (in ``\text`` always), or else a product of single letters.
"""

import re
from dataclasses import dataclass

from igpo_jax.rewards.answers.nodes import NotUnderstood
from igpo_jax.rewards.answers.words import ORDINALS, names

#: Longer answers, in tokens, are compared as text.
MAX_TOKENS = 1200
#: Longer numerals, in digits, are compared as text.
MAX_DIGITS = 1000

FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp abs floor ceil gcd lcm "
    "max min"
)
_KNOWN = FUNCTIONS | names("sqrt frac dfrac tfrac pi inf infty infinity cdot times cup cap binom emptyset")
_SPELLINGS = {"infinity": "infty", "inf": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}
_UNITS = names(
    "m cm mm km ft in yd mi g kg mg lb lbs oz s sec min h hr hrs ms mph kph L mL ml cl gal N J W V Hz kW Pa cc "
    "am pm AM PM USD"
)
_SHORT_WORDS = names("no of by to is if at on up us we it yes all and one two six ten red day odd")
_TEXT = names("text textbf textit textrm textnormal textsf texttt mbox hbox emph textsc")
_ROMAN = names("mathrm operatorname mathsf mathtt")
_TRANSPARENT = names("mathbf boldsymbol bm vec hat mathit overrightarrow underline widehat boxed fbox")
_SPACES = names("quad qquad enspace thinspace space")

_TOKEN = re.compile(
    r"(?P<space>\s+|\\[,;:>! ]|~)"
    r"|(?P<drop>\\[()\[\]$%#\"]|[$%\"€£¥₹])"
    r"|(?P<number>(?:\d+(?:\.\d+|\.(?=\s?\\(?:overline|bar|dot)\b))?|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|\\(?P<command>[A-Za-z]+)\*?"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<row>\\\\(?:\[[^\[\]]{0,12}\])?)"
    r"|(?P<operator>\\[{}|&_]|<=|>=|!=|==|\*\*|.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``kind`` is "number", "command", "symbol", "word", "operator" or "end"."""

    kind: str
    text: str
    spaced: bool = False


END = Token("end", "")


def tokenize(text: str) -> list[Token]:
    """Splits cleaned text into tokens.

    Raises:
        NotUnderstood: the text has more tokens or digits than the judge reads.
    """
    tokens = _classify(_raw(text, "math"))
    if len(tokens) > MAX_TOKENS:
        raise NotUnderstood("too long")
    return tokens


def _raw(text: str, mode: str) -> list[Token]:
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise NotUnderstood("a letter outside the grammar")
        position = found.end()
        kind, body = str(found.lastgroup), str(found[str(found.lastgroup)])
        if kind in ("space", "drop"):
            spaced = True
            continue
        if kind == "command" and body in _SPACES:
            spaced = True
            continue
        if kind == "command" and body in _TEXT | _ROMAN | _TRANSPARENT:
            inner, position = _argument(text, position)
            tokens.extend(_wrapped(body, inner, spaced))
        else:
            tokens.append(_token(kind, body, mode, spaced))
        spaced = False
    return tokens


def _argument(text: str, position: int) -> tuple[str, int]:
    """The braced argument at ``position`` (or one letter), and where it ends; one that never closes runs to the end."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position >= len(text) or text[position] != "{":
        return text[position : position + 1], position + 1
    depth = 0
    for place in range(position, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[position + 1 : place], place + 1
    return text[position + 1 :], len(text)


def _wrapped(command: str, inner: str, spaced: bool) -> list[Token]:
    if len(inner) > 400:
        raise NotUnderstood("a long passage of text")
    if command in _TEXT:
        tokens = _raw(inner, "text")
    elif command in _ROMAN:
        tokens = _raw(inner, "math" if len(inner.strip()) == 1 else "roman")
    else:
        tokens = [_bold(token) for token in _raw(inner, "math")]
    return [Token(tokens[0].kind, tokens[0].text, True), *tokens[1:]] if tokens and spaced else tokens


def _bold(token: Token) -> Token:
    """A bold i or e is a vector's name, not the constant."""
    if token.kind == "run" and token.text in ("i", "e"):
        return Token("symbol", f"bold {token.text}", token.spaced)
    return token


def _token(kind: str, body: str, mode: str, spaced: bool) -> Token:
    if kind == "number" and len(body) > MAX_DIGITS:
        raise NotUnderstood("too many digits")
    if kind == "row":
        return Token("operator", "\\\\", spaced)
    if kind == "run" and mode == "text":
        return Token("word", body, spaced)
    if kind == "run" and mode == "roman":
        return Token("command" if body in _KNOWN else "word", _SPELLINGS.get(body, body), spaced)
    if kind == "command":
        body = _SPELLINGS.get(body, body)
    return Token(kind, body, spaced)


def _classify(tokens: list[Token]) -> list[Token]:
    """Settles each run of letters: a known name, a word, or a product of symbols."""
    result: list[Token] = []
    tokens = [part for token in tokens for part in _split_function(token)]
    for index, token in enumerate(tokens):
        if token.kind != "run":
            result.append(token)
            continue
        before = tokens[index - 1] if index else END
        after = tokens[index + 1] if index + 1 < len(tokens) else END
        if token.text in _KNOWN:
            result.append(Token("command", _SPELLINGS.get(token.text, token.text), token.spaced))
        elif _is_word(token, before, after):
            result.append(Token("word", token.text, token.spaced))
        else:
            letters = [Token("symbol", letter) for letter in token.text]
            result.extend([Token("symbol", token.text[0], token.spaced), *letters[1:]])
    return result


def _split_function(token: Token) -> list[Token]:
    """``cosx`` as ``cos x``."""
    head, tail = token.text[:-1], token.text[-1:]
    if token.kind == "run" and head in FUNCTIONS and tail in tuple("xyzABC"):
        return [Token("run", head, token.spaced), Token("run", tail)]
    return [token]


def _is_wordlike(token: Token) -> bool:
    return token.kind in ("run", "word") and token.text.lower() not in ("and", "or")


def _is_word(token: Token, before: Token, after: Token) -> bool:
    text = token.text
    if len(text) >= 4 or text.lower() in _SHORT_WORDS:
        return True
    beside_words = (_is_wordlike(before) and token.spaced) or (_is_wordlike(after) and after.spaced)
    if beside_words and (len(text) > 1 or before.kind == "word"):
        return True
    after_value = before.kind == "number" or before.text in (")", "}")
    if text in ORDINALS and before.kind == "number":
        return True
    if text in _UNITS and after_value and (token.spaced or len(text) > 1):
        return True
    return len(text) == 3 and after_value and token.spaced and bool(set(text) & set("aeiou")) and text.islower()
