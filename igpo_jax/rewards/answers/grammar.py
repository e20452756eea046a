r"""The judge's grammar: an answer as people and LaTeX write it, read into a tree; nothing is evaluated here.

    answer   := element ((, | ; | and | or) element)*
    element  := words | relation [unit]
    relation := union ((= | < | \le | ... | \in) union)*        union := ratio ((\cup | \cap | \setminus) ratio)*
    ratio    := sum (: sum)*      sum := term ((+ | - | \pm) term)*      term := factor ([* | / | \cdot] factor)*
    factor   := [-] primary (^ factor | _ subscript | ! | degree)*

An answer is understood as a whole or not at all.
"""

from igpo_jax.rewards.answers.arithmetic import RELATIONS, UNIONS, Arithmetic
from igpo_jax.rewards.answers.commands import FRACTIONS
from igpo_jax.rewards.answers.cursor import CLOSERS
from igpo_jax.rewards.answers.lexer import END, Token, tokenize
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood, number
from igpo_jax.rewards.answers.words import CALENDAR, MULTIPLIERS, NUMBER_WORDS

_LEADING = frozenset(["approx", "=", "simeq", "thickapprox", "implies", "Rightarrow", "therefore", ":"])


def read_answer(cleaned: str) -> Node:
    """Reads the whole of a cleaned answer.

    Raises:
        NotUnderstood: some part of it is outside the grammar or over its limits.
    """
    tokens = tokenize(cleaned)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "*", "\\\\"):
        tokens.pop()
    while tokens and tokens[0].text in _LEADING:
        tokens.pop(0)
    reader = _Reader(tokens)
    members = reader.members()
    if reader.peek() is not END:
        raise NotUnderstood(f"'{reader.peek().text}' is not expected here")
    return members[0] if len(members) == 1 else Node("list", tuple(members))


class _Reader(Arithmetic):
    """The whole grammar."""

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
        return self.peek() is END or self.peek().text in CLOSERS

    def at_separator(self) -> bool:
        token = self.peek()
        return token.text in (",", ";") or (token.kind == "word" and token.text.lower() in ("and", "or"))

    def element(self) -> Node:
        if self.peek().kind == "word" and self.peek().text.lower() not in NUMBER_WORDS:
            words = self.words()
            if self.peek().text == "_":
                words = self.subscripted(words)
            if words.kind != "text" or self.accept("=", ":") is None:
                return words
            return Node("relation", (words, self.element()), "=")
        node = self.relation()
        if self.starts_remark() or (self.peek().kind == "word" and not self.at_separator()):
            return self.with_unit(node)
        return node

    def subscripted(self, words: Node) -> Node:
        """A numeral with letters and its base, ``A5_{11}``; else all up to the equals sign names what is equal."""
        start = self.place
        self.take()
        try:
            return self.lowered(words)
        except NotUnderstood:
            ahead = [place for place in range(start, len(self.tokens)) if self.tokens[place].text == "="]
            if not ahead:
                raise
            self.place = ahead[0]
            return words

    def words(self) -> Node:
        parts = []
        while not (self.at_close() or self.at_separator() or self.peek().text in ("=", ":", "_")):
            parts.append(self.take().text)
        return Node("text", name="".join(parts).lower().strip("."))

    def with_unit(self, node: Node) -> Node:
        """Drops the unit or counted noun after a value; "million" and its like multiply."""
        words: list[str] = []
        if self.accept(*FRACTIONS):
            self.unit_part()
            self.unit_part()
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
        if NUMBER_WORDS.keys() & set(words):
            raise NotUnderstood("two numbers in words")
        if words and words[0] in MULTIPLIERS:
            return Node("multiply", (node, number(MULTIPLIERS[words[0]])))
        half = {"am": "am", "pm": "pm"}.get("".join(words).replace(".", ""), "")
        return Node("ratio", node.items, half) if node.kind == "ratio" else node

    def unit_part(self) -> None:
        """The numerator or denominator of a unit."""
        self.expect("{")
        while self.peek().kind in ("word", "symbol"):
            self.take()
            if self.accept("^"):
                self.exponent()
        self.expect("}")

    def relation(self) -> Node:
        parts, signs = [self.union()], []
        while self.peek().kind in ("operator", "command") and self.peek().text in RELATIONS:
            signs.append(RELATIONS[self.take().text])
            parts.append(self.union())
        return parts[0] if not signs else Node("relation", tuple(parts), " ".join(signs))

    def union(self) -> Node:
        node = self.ratio()
        while True:
            sign = self.accept(*UNIONS)
            if sign is not None:
                kind = UNIONS[sign.text]
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
