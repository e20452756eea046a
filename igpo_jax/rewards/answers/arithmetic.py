"""Sums, products, factors and brackets."""

from fractions import Fraction

from igpo_jax.rewards.answers.commands import FRACTIONS, OVERLINES, Commands
from igpo_jax.rewards.answers.cursor import CLOSERS
from igpo_jax.rewards.answers.lexer import Token
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood, number
from igpo_jax.rewards.answers.numerals import numeral_node, whole_number
from igpo_jax.rewards.answers.words import FRACTION_WORDS, NUMBER_WORDS, ORDINALS

#: Commands and operators between two sides of a relation, by their sign.
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "le": "<=", "leq": "<=",
    "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=", "lt": "<", "gt": ">",
    "in": "in",
}  # fmt: skip
#: Operations on sets.
UNIONS = {"cup": "cup", "bigcup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus"}
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
_OPENERS = {
    "(": ")",
    "[": "]",
    "\\{": "\\}",
    "langle": "rangle",
    "lfloor": "rfloor",
    "lceil": "rceil",
    "lvert": "rvert",
}


class Arithmetic(Commands):
    """The part of the grammar that computes."""

    def sum(self) -> Node:
        """Terms with signs between them."""
        sign = self.accept("+", "-", "pm", "mp")
        node = _signed(sign, self.term())
        parts = [node]
        while sign := self.accept("+", "-", "pm", "mp"):
            parts.append(_signed(sign, self.term()))
        return parts[0] if len(parts) == 1 else Node("add", tuple(parts))

    def term(self) -> Node:
        """Factors, multiplied or divided."""
        factors = [self.factor()]
        while True:
            sign = self.accept(*_PRODUCTS)
            if sign is None and not self.starts_factor():
                return factors[0] if len(factors) == 1 else Node("multiply", tuple(factors))
            factor = self.factor()
            divides = sign is not None and _PRODUCTS[sign.text] == "divide"
            factors.append(Node("inverse", (factor,)) if divides else factor)

    def starts_factor(self) -> bool:
        """Whether a factor follows without an operator."""
        token, before = self.peek(), self.peek(-1)
        if token.kind == "symbol":
            return not (token.text == "U" and self.peek(1).text in ("(", "["))
        if token.kind == "number":
            return before.kind not in ("number", "symbol")
        if self.starts_remark():
            return False
        if token.kind == "command":
            return (
                token.text not in CLOSERS
                and token.text not in RELATIONS
                and token.text not in UNIONS
                and (token.text not in ("end", "choose", "mid", "pm", "mp"))
            )
        return token.text in ("(", "[", "{", "\\{") or (token.text == "|" and not self.bars)

    def starts_remark(self) -> bool:
        """Whether words in brackets follow, "20 (white hats)", or a fraction of words, ``60 \\frac{mi}{h}``."""
        if self.peek().kind == "command" and self.peek().text in FRACTIONS:
            return self.peek(1).text == "{" and self.peek(2).kind == "word" and self.peek(2).text not in NUMBER_WORDS
        return self.peek().text == "(" and self.peek(1).kind == "word"

    def factor(self) -> Node:
        """One factor with its exponents and marks."""
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
        """The power, or the mark that stands as an exponent."""
        if self.accept("circ", "degree"):
            return Node("degrees", (node,))
        braced = self.peek().text == "{"
        first = self.peek(1) if braced else self.peek()
        if first.text in ("circ", "degree", "prime", "o") or first.text in ORDINALS:
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
        digits = node.name.lower() if node.kind in ("text", "number") else ""
        base = NUMBER_WORDS.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 3 else 0)
        if not digits or base < 2:
            raise NotUnderstood("a subscript")
        return Node("base", (number(base),), digits)

    def primary(self) -> Node:
        """One factor without exponents and marks."""
        self.enter()
        node = self.unmarked(self.take())
        self.depth -= 1
        return node

    def unmarked(self, token: Token) -> Node:
        """The primary that begins with ``token``."""
        if token.kind == "number":
            return self.numeral(token)
        if token.kind == "symbol":
            constant = token.text in ("e", "i") and self.peek().text != "_"
            return Node("constant" if constant else "symbol", name=token.text)
        if token.kind == "word" and token.text.lower() in NUMBER_WORDS:
            return self.number_in_words(NUMBER_WORDS[token.text.lower()])
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

    def number_in_words(self, value: int) -> Node:
        """A number word, with what belongs to it: "twenty-one", "two thirds"."""
        ahead = 1 if self.peek().text == "-" else 0
        unit = NUMBER_WORDS.get(self.peek(ahead).text.lower(), 0) if self.peek(ahead).kind == "word" else 0
        if value >= 20 and 0 < unit < 10:
            self.place += ahead + 1
            value += unit
        part = FRACTION_WORDS.get(self.peek().text.lower()) if self.peek().kind == "word" else None
        if part is None:
            return number(value)
        self.take()
        return number(Fraction(value, part))

    def numeral(self, token: Token) -> Node:
        """A number; with a proper fraction right after it a mixed number, with an overline a repeating decimal."""
        if self.peek().text in OVERLINES:
            return self.repeating(token.text)
        whole = numeral_node(token.text)
        start = self.place
        if token.text.isdigit() and (part := self.fraction_part()) is not None:
            return Node("number", value=(whole.value or Fraction(0)) + part)
        self.place = start
        return whole

    def fraction_part(self) -> Fraction | None:
        """The proper fraction of a mixed number: ``\\frac{1}{2}`` or, after a blank, ``1/2``."""
        if self.peek().text in FRACTIONS and self.peek().kind == "command":
            node = self.command(self.take().text)
            top, bottom = (whole_number(item) for item in node.items)
        elif self.peek().kind == "number" and self.peek().spaced and self.peek(1).text == "/":
            top, bottom = (int(text) if text.isdecimal() else None for text in (self.peek().text, self.peek(2).text))
            self.place += 3
        else:
            return None
        return Fraction(top, bottom) if top is not None and bottom is not None and 0 < top < bottom else None

    def repeating(self, digits: str) -> Node:
        """``0.1\\overline{6}``; ``digits`` are those before the line."""
        self.take()
        self.expect("{")
        block = self.take().text
        self.expect("}")
        if "." not in digits or not block.isdigit():
            raise NotUnderstood("an overline")
        places = len(digits.partition(".")[2])
        tail = Fraction(int(block), 10**places * (10 ** len(block) - 1))
        return Node("number", value=Fraction(digits.removesuffix(".")) + tail)

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
        """What stands between round, square or curly brackets."""
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
        """What stands between bars."""
        self.bars += 1
        node = self.sum()
        self.expect(closer)
        self.bars -= 1
        return Node("call", (node,), "abs")


def _signed(sign: Token | None, node: Node) -> Node:
    if sign is None or sign.text == "+":
        return node
    if sign.text == "-":
        return Node("negate", (node,))
    return Node("plusminus", (node,), "+" if sign.text == "pm" else "-")
