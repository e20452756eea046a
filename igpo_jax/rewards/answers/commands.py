r"""LaTeX commands with arguments: fractions, roots, functions, matrices."""

from igpo_jax.rewards.answers.cursor import Cursor
from igpo_jax.rewards.answers.lexer import FUNCTIONS, Token
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood
from igpo_jax.rewards.answers.numerals import numeral_node, whole_number
from igpo_jax.rewards.answers.words import names

FRACTIONS = frozenset(["frac", "dfrac", "tfrac", "cfrac"])
OVERLINES = frozenset(["overline", "bar", "dot"])
_BINOMIALS = frozenset(["binom", "dbinom", "tbinom"])
_MATRICES = frozenset(["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"])
_LETTERS = names(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar"
)
_IGNORED_MARKS = frozenset(["angle", "triangle", "measuredangle"])


class Commands(Cursor):
    """The part of the grammar that follows a backslash."""

    def command(self, name: str) -> Node:
        """The tree of a command and its arguments."""
        if name in FRACTIONS:
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
        if name in _IGNORED_MARKS or name in OVERLINES:
            return self.factor()
        raise NotUnderstood(f"\\{name}")

    def argument(self) -> Node:
        """An argument of a command: a braced group, or the next digit, letter or command."""
        token = self.peek()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.place] = Token("number", token.text[1:])
            return numeral_node(token.text[0])
        if token.text == "-":
            raise NotUnderstood("a sign as an argument")
        return self.primary_only()

    def primary_only(self) -> Node:
        """A bare number, or a primary."""
        token = self.peek()
        return numeral_node(self.take().text) if token.kind == "number" else self.primary()

    def root(self) -> Node:
        """``\\sqrt[index]{radicand}``."""
        index = None
        if self.accept("["):
            index = self.sum()
            self.expect("]")
        radicand = self.primary_only()
        return Node("call", (radicand,) if index is None else (radicand, index), "sqrt" if index is None else "root")

    def call(self, name: str) -> Node:
        """A function with its exponent, base and arguments."""
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
        if exponent is not None and exponent.kind == "negate" and whole_number(exponent.items[0]) == 1:
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
        """The rows of a matrix up to the end of its environment."""
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
        """The name in braces after ``begin`` or ``end``."""
        self.expect("{")
        parts = []
        while self.peek().text not in ("}", ""):
            parts.append(self.take().text)
        self.expect("}")
        return "".join(parts)
