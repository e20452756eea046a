r"""The judge's grammar: an answer as people and LaTeX write it, read into a tree; nothing is evaluated here.

    answer   := element ((, | ; | and | or) element)*
    element  := words | relation [unit]
    relation := union ((= | < | \le | ... | \in) union)*        union := ratio ((\cup | \cap | \setminus) ratio)*
    ratio    := sum (: sum)*      sum := term ((+ | - | \pm) term)*      term := factor ([* | / | \cdot] factor)*
    factor   := [-] primary (^ factor | _ subscript | ! | degree)*

An answer is understood as a whole or not at all.
"""

from fractions import Fraction

from igpo_jax.rewards.lexer import END, FUNCTIONS, Token, tokenize
from igpo_jax.rewards.nodes import Node, NotUnderstood, number
from igpo_jax.rewards.words import CALENDAR, MULTIPLIERS, NUMBER_WORDS, ORDINALS

#: Deeper nesting is compared as text; keeps every recursion far from Python's limit.
MAX_DEPTH = 30

_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "le": "<=", "leq": "<=",
    "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=", "lt": "<", "gt": ">",
    "in": "in",
}  # fmt: skip
_LEADING = frozenset(["approx", "=", "simeq", "thickapprox", "implies", "Rightarrow", ":"])
_UNIONS = {"cup": "cup", "bigcup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus"}
_PRODUCTS = {
    "*": "multiply",
    "cdot": "multiply",
    "times": "multiply",
    "ast": "multiply",
    "/": "divide",
    "div": "divide",
}
#: Exponents, subscripts and marks on one factor.
_MAX_MARKS = 6
_FRACTIONS = frozenset(["frac", "dfrac", "tfrac", "cfrac"])
_BINOMIALS = frozenset(["binom", "dbinom", "tbinom"])
_MATRICES = frozenset(["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"])
_OPENERS = {
    "(": ")",
    "[": "]",
    "\\{": "\\}",
    "langle": "rangle",
    "lfloor": "rfloor",
    "lceil": "rceil",
    "lvert": "rvert",
}
_CLOSERS = frozenset([")", "]", "\\}", "}", "rangle", "rfloor", "rceil", "rvert", "rVert"])
_LETTERS = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon "
    "phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar".split()
)
_OVERLINES = frozenset(["overline", "bar", "dot"])
_IGNORED_MARKS = frozenset(["angle", "triangle", "measuredangle"])


def read_answer(cleaned: str) -> Node:
    """Reads the whole of a cleaned answer.

    Raises:
        NotUnderstood: some part of it is outside the grammar or over its limits.
    """
    tokens = tokenize(cleaned)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "*"):
        tokens.pop()
    while tokens and tokens[0].text in _LEADING:
        tokens.pop(0)
    reader = _Reader(tokens)
    members = reader.members()
    if reader.peek() is not END:
        raise NotUnderstood(f"'{reader.peek().text}' is not expected here")
    return members[0] if len(members) == 1 else Node("list", tuple(members))


class _Reader:
    """Recursive descent over the tokens of one answer."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else END

    def take(self) -> Token:
        token = self.peek()
        self.place += 1
        return token

    def accept(self, *texts: str) -> Token | None:
        token = self.peek()
        if token.kind in ("operator", "command") and token.text in texts:
            self.place += 1
            return token
        return None

    def expect(self, *texts: str) -> Token:
        token = self.accept(*texts)
        if token is None:
            raise NotUnderstood(f"expected '{texts[0]}', found '{self.peek().text}'")
        return token

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotUnderstood("nested too deeply")

    # --- answer, element, words -------------------------------------------------------------------------------------

    def members(self) -> list[Node]:
        """Elements between separators, up to the end or a closing bracket."""
        if self.at_close():
            return []
        found = [self.element()]
        while self.at_separator():
            while self.at_separator():
                self.take()
            if self.at_close():
                break
            found.append(self.element())
        return found

    def at_close(self) -> bool:
        return self.peek() is END or self.peek().text in _CLOSERS

    def at_separator(self) -> bool:
        token = self.peek()
        return token.text in (",", ";") or (token.kind == "word" and token.text.lower() in ("and", "or"))

    def element(self) -> Node:
        if self.peek().kind == "word" and self.peek().text.lower() not in NUMBER_WORDS:
            words = self.words()
            if self.accept("_"):
                return self.lowered(words)
            if self.accept("=", ":") is None:
                return words
            return Node("relation", (words, self.element()), "=")
        node = self.relation()
        if self.starts_remark() or (self.peek().kind == "word" and not self.at_separator()):
            return self.with_unit(node)
        return node

    def starts_remark(self) -> bool:
        """Whether words in round brackets follow, "20 (white hats)"."""
        return self.peek().text == "(" and self.peek(1).kind == "word"

    def words(self) -> Node:
        parts = []
        while not (self.at_close() or self.at_separator() or self.peek().text in ("=", ":", "_")):
            parts.append(self.take().text)
        return Node("text", name="".join(parts).lower().strip("."))

    def with_unit(self, node: Node) -> Node:
        """Drops the unit or counted noun after a value; "million" and its like multiply."""
        words: list[str] = []
        remark = self.accept("(")
        while not (self.at_close() or self.at_separator() or self.peek().text in ("=", "<", ">")):
            token = self.take()
            if token.text == "^":
                self.exponent()
            elif token.kind in ("word", "symbol") or token.text in ("/", ".", "-", "'", "cdot", "*"):
                words.append(token.text.lower())
            else:
                raise NotUnderstood(f"'{token.text}' after a unit")
        if remark:
            self.expect(")")
        if CALENDAR & set(words):
            raise NotUnderstood("a date")
        if words and words[0] in MULTIPLIERS:
            return Node("multiply", (node, number(MULTIPLIERS[words[0]])))
        half = {"am": "am", "pm": "pm"}.get("".join(words).replace(".", ""), "")
        return Node("ratio", node.items, half) if node.kind == "ratio" else node

    # --- statements -------------------------------------------------------------------------------------------------

    def relation(self) -> Node:
        parts, signs = [self.union()], []
        while self.peek().kind in ("operator", "command") and self.peek().text in _RELATIONS:
            signs.append(_RELATIONS[self.take().text])
            parts.append(self.union())
        return parts[0] if not signs else Node("relation", tuple(parts), " ".join(signs))

    def union(self) -> Node:
        node = self.ratio()
        while True:
            sign = self.accept(*_UNIONS)
            if sign is not None:
                kind = _UNIONS[sign.text]
            elif node.kind in ("bracket", "union") and self.peek() == Token("symbol", "U", self.peek().spaced):
                self.take()
                kind = "cup"
            else:
                return node
            self.enter()
            right = self.ratio()
            left = node.items if node.kind == "union" and node.name == kind else (node,)
            node = Node("union", (*left, right), kind)

    def ratio(self) -> Node:
        parts = [self.sum()]
        while self.accept(":") or (self.peek().text == "to" and self.peek(1).kind == "number" and self.take()):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("ratio", tuple(parts))

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def sum(self) -> Node:
        sign = self.accept("+", "-", "pm", "mp")
        node = _signed(sign, self.term())
        parts = [node]
        while sign := self.accept("+", "-", "pm", "mp"):
            parts.append(_signed(sign, self.term()))
        return parts[0] if len(parts) == 1 else Node("add", tuple(parts))

    def term(self) -> Node:
        factors = [self.factor()]
        while True:
            sign = self.accept(*_PRODUCTS)
            if sign is None and not self.starts_factor():
                return factors[0] if len(factors) == 1 else Node("multiply", tuple(factors))
            factor = self.factor()
            divides = sign is not None and _PRODUCTS[sign.text] == "divide"
            factors.append(Node("divide", (number(1), factor)) if divides else factor)

    def starts_factor(self) -> bool:
        """Whether a factor follows without an operator."""
        token, before = self.peek(), self.peek(-1)
        if token.kind == "symbol":
            return not (token.text == "U" and self.peek(1).text in ("(", "["))
        if token.kind == "number":
            return before.kind not in ("number", "symbol")
        if token.kind == "command":
            return (
                token.text not in _CLOSERS
                and token.text not in _RELATIONS
                and token.text not in _UNIONS
                and (token.text not in ("end", "choose", "mid", "pm", "mp"))
            )
        if token.text == "(":
            return not self.starts_remark()
        return token.text in ("[", "{", "\\{") or (token.text == "|" and not self.bars)

    def factor(self) -> Node:
        self.enter()
        if sign := self.accept("-", "+"):
            node = _signed(sign, self.factor())
            self.depth -= 1
            return node
        node = self.primary()
        for _ in range(_MAX_MARKS):
            marked = self.marked(node)
            if marked is None:
                self.depth -= 1
                return node
            node = marked
        raise NotUnderstood("too many exponents and marks")

    def marked(self, node: Node) -> Node | None:
        """The node with the exponent, subscript or mark that follows it, None where none follows."""
        if self.accept("^", "**"):
            return self.raised(node)
        if self.accept("_"):
            return self.lowered(node)
        if self.accept("!"):
            if self.peek().text == "!":
                raise NotUnderstood("a double factorial")
            return Node("factorial", (node,))
        if self.accept("degree"):
            return Node("degrees", (node,))
        if node.kind == "symbol" and self.accept("'"):
            return Node("symbol", name=node.name + "'")
        return None

    def exponent(self) -> Node:
        """An exponent: a group, or a signed number, letter or command; towers read from the right."""
        self.enter()
        sign = self.accept("-", "+")
        node = self.primary_only()
        if self.accept("^", "**"):
            node = Node("power", (node, self.exponent()))
        self.depth -= 1
        return _signed(sign, node)

    def raised(self, node: Node) -> Node:
        if self.accept("circ", "degree"):
            return Node("degrees", (node,))
        braced = self.peek().text == "{"
        first = self.peek(1) if braced else self.peek()
        if first.text in ("circ", "degree", "prime") or first.text in ORDINALS:
            self.take()
            if braced:
                self.take()
                self.expect("}")
            if first.text == "prime" and node.kind == "symbol":
                return Node("symbol", name=node.name + "'")
            return node if first.text in ORDINALS else Node("degrees", (node,))
        return Node("power", (node, self.exponent()))

    def lowered(self, node: Node) -> Node:
        """A subscript: the base of a numeral, or part of a symbol's name."""
        start = self.place
        braced = self.accept("{")
        if braced:
            while self.peek().text not in ("}", ""):
                self.take()
            self.expect("}")
        else:
            self.take()
        name = "".join(token.text for token in self.tokens[start : self.place]).strip("{}").lower()
        if node.kind == "symbol":
            return Node("symbol", name=f"{node.name}_{name}")
        digits = node.name if node.kind == "text" else _digits(node)
        base = NUMBER_WORDS.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 3 else 0)
        if not digits or base < 2:
            raise NotUnderstood("a subscript")
        return Node("base", (number(base),), digits)

    def primary(self) -> Node:
        self.enter()
        node = self.unmarked(self.take())
        self.depth -= 1
        return node

    def unmarked(self, token: Token) -> Node:
        if token.kind == "number":
            return self.numeral(token)
        if token.kind == "symbol":
            constant = token.text in ("e", "i") and self.peek().text != "_"
            return Node("constant" if constant else "symbol", name=token.text)
        if token.kind == "word" and token.text.lower() in NUMBER_WORDS:
            return number(NUMBER_WORDS[token.text.lower()])
        if token.kind == "word":
            self.place -= 1
            return self.words()
        if token.text == "{":
            return self.group()
        if token.text in _OPENERS:
            return self.bracket(token.text)
        if token.text == "|":
            return self.absolute("|")
        if token.kind == "command":
            return self.command(token.text)
        raise NotUnderstood(f"'{token.text}' is not expected here")

    def numeral(self, token: Token) -> Node:
        """A number; with a proper fraction right after it a mixed number, with an overline a repeating decimal."""
        if self.peek().text in _OVERLINES:
            return self.repeating(token.text)
        whole = _number(token.text)
        start = self.place
        if token.text.isdigit() and (part := self.fraction_part()) is not None:
            return Node("number", value=(whole.value or Fraction(0)) + part)
        self.place = start
        return whole

    def fraction_part(self) -> Fraction | None:
        """The proper fraction of a mixed number: ``\\frac{1}{2}`` or, after a blank, ``1/2``."""
        if self.peek().text in _FRACTIONS and self.peek().kind == "command":
            node = self.command(self.take().text)
            top, bottom = (_plain(item) for item in node.items)
        elif self.peek().kind == "number" and self.peek().spaced and self.peek(1).text == "/":
            top, bottom = _integer(self.peek().text), _integer(self.peek(2).text)
            self.place += 3
        else:
            return None
        return Fraction(top, bottom) if top is not None and bottom is not None and 0 < top < bottom else None

    def repeating(self, digits: str) -> Node:
        self.take()
        self.expect("{")
        block = self.take().text
        self.expect("}")
        if "." not in digits or not block.isdigit():
            raise NotUnderstood("an overline")
        places = len(digits.partition(".")[2])
        tail = Fraction(int(block), 10**places * (10 ** len(block) - 1))
        return Node("number", value=Fraction(digits.removesuffix(".")) + tail)

    # --- groups and commands ----------------------------------------------------------------------------------------

    def group(self) -> Node:
        """What stands between braces: one value, ``{n \\choose k}``, or a set whose backslashes were lost."""
        bars, self.bars = self.bars, 0
        members = self.members()
        if len(members) == 1 and self.accept("choose"):
            members = [Node("call", (members[0], self.sum()), "binom")]
        self.expect("}")
        self.bars = bars
        return members[0] if len(members) == 1 else Node("set", tuple(members))

    def bracket(self, opener: str) -> Node:
        if opener == "lvert":
            return self.absolute("rvert")
        bars, self.bars = self.bars, 0
        members = self.members()
        wanted = (")", "]") if opener in ("(", "[") else (_OPENERS[opener],)
        closer = self.expect(*wanted).text
        self.bars = bars
        if opener == "\\{":
            return Node("set", tuple(members))
        if len(members) == 1 and closer == _OPENERS[opener]:
            kind = {"lfloor": "floor", "lceil": "ceil"}.get(opener)
            return Node("call", tuple(members), kind) if kind else members[0]
        if len(members) < 2:
            raise NotUnderstood("an unbalanced or empty bracket")
        return Node("bracket", tuple(members), "()" if opener == "langle" else opener + closer)

    def absolute(self, closer: str) -> Node:
        self.bars += 1
        node = self.sum()
        self.expect(closer)
        self.bars -= 1
        return Node("call", (node,), "abs")

    def command(self, name: str) -> Node:
        if name in _FRACTIONS:
            return Node("divide", (self.argument(), self.argument()))
        if name in _BINOMIALS:
            return Node("call", (self.argument(), self.argument()), "binom")
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.call(name)
        if name in ("pi", "infty"):
            return Node("constant", name=name)
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name == "begin":
            return self.matrix()
        if name in _LETTERS:
            return Node("symbol", name=f"\\{name}")
        if name in ("mathbb", "mathcal", "Bbb"):
            return Node("symbol", name=f"{name} {self.argument().name}")
        if name in _IGNORED_MARKS or name in _OVERLINES:
            return self.factor()
        raise NotUnderstood(f"\\{name}")

    def argument(self) -> Node:
        """An argument of a command: a braced group, or the next digit, letter or command."""
        token = self.peek()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.place] = Token("number", token.text[1:])
            return _number(token.text[0])
        if token.text == "-":
            raise NotUnderstood("a sign as an argument")
        return self.primary_only()

    def primary_only(self) -> Node:
        token = self.peek()
        return _number(self.take().text) if token.kind == "number" else self.primary()

    def root(self) -> Node:
        index = None
        if self.accept("["):
            index = self.sum()
            self.expect("]")
        radicand = self.primary_only()
        return Node("call", (radicand,) if index is None else (radicand, index), "sqrt" if index is None else "root")

    def call(self, name: str) -> Node:
        exponent = base = None
        while mark := self.accept("^", "_"):
            if mark.text == "^":
                exponent = self.argument()
            else:
                base = self.log_base()
        if self.peek().text in ("(", "[", "{"):
            node = self.primary()
            arguments = node.items if node.kind in ("bracket", "set") else (node,)
        else:
            arguments = (self.bare_argument(),)
        if base is not None:
            arguments = (*arguments, base)
        if exponent is not None and exponent.kind == "negate" and _plain(exponent.items[0]) == 1:
            return Node("call", arguments, "arc" + name)
        node = Node("call", arguments, name)
        return node if exponent is None else Node("power", (node, exponent))

    def log_base(self) -> Node:
        """``\\log_28`` has base 2; ``log_10(x)`` and ``\\log_{10} x`` have base 10."""
        token, after = self.peek(), self.peek(1)
        whole = token.kind != "number" or after.kind in ("number", "symbol", "command") or after.text in ("(", "{")
        return self.primary_only() if whole else self.argument()

    def bare_argument(self) -> Node:
        """What a function without brackets applies to: the factors up to an operator or the next function."""
        node = self.factor()
        while self.starts_factor() and self.peek().text not in FUNCTIONS and self.peek().text not in ("(", "["):
            node = Node("multiply", (node, self.factor()))
        return node

    def matrix(self) -> Node:
        name = self.environment()
        if name not in _MATRICES:
            raise NotUnderstood(f"the environment {name}")
        if name == "array" and self.accept("{"):
            while self.peek().text not in ("}", ""):
                self.take()
            self.expect("}")
        rows = [[]] if self.peek().text == "end" else [[self.element()]]
        while self.peek().text != "end":
            if self.accept("&"):
                rows[-1].append(self.element())
            elif self.expect("\\\\") and self.peek().text != "end":
                rows.append([self.element()])
        self.take()
        if self.environment() != name:
            raise NotUnderstood("environments that cross")
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))

    def environment(self) -> str:
        self.expect("{")
        parts = []
        while self.peek().text not in ("}", ""):
            parts.append(self.take().text)
        self.expect("}")
        return "".join(parts)


def _signed(sign: Token | None, node: Node) -> Node:
    if sign is None or sign.text == "+":
        return node
    if sign.text == "-":
        return Node("negate", (node,))
    return Node("plusminus", (node,), "+" if sign.text == "pm" else "-")


def _number(text: str) -> Node:
    mantissa, _, exponent = text.lower().partition("e")
    value = Fraction(mantissa)
    if not exponent:
        return Node("number", name=text if text.isdigit() else "", value=value)
    return Node("multiply", (Node("number", value=value), Node("power", (number(10), number(int(exponent))))))


def _digits(node: Node) -> str:
    return node.name.lower() if node.kind == "number" else ""


def _plain(node: Node) -> int | None:
    return int(node.value) if node.kind == "number" and node.value is not None and node.value.denominator == 1 else None


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() and text.isascii() else None
