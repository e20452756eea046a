"""A place in the tokens of one answer, and the parts of the grammar that refer to each other."""

from abc import ABC, abstractmethod

from igpo_jax.rewards.answers.lexer import END, Token
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood

#: Deeper nesting is compared as text; keeps every recursion far from Python's limit.
MAX_DEPTH = 30
#: Tokens that end a bracket or group.
CLOSERS = frozenset([")", "]", "\\}", "}", "rangle", "rfloor", "rceil", "rvert", "rVert"])


class Cursor(ABC):
    """Reads tokens one after the other; what is nested deeper than ``MAX_DEPTH`` is not understood."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        """The token ``ahead`` places on, without taking it."""
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else END

    def take(self) -> Token:
        """Takes the next token."""
        token = self.peek()
        self.place += 1
        return token

    def accept(self, *texts: str) -> Token | None:
        """Takes the next token where it is an operator or command with one of these texts."""
        token = self.peek()
        if token.kind in ("operator", "command") and token.text in texts:
            self.place += 1
            return token
        return None

    def expect(self, *texts: str) -> Token:
        """Takes the next token, which must be one of these."""
        token = self.accept(*texts)
        if token is None:
            raise NotUnderstood(f"expected '{texts[0]}', found '{self.peek().text}'")
        return token

    def enter(self) -> None:
        """Counts one level of nesting."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotUnderstood("nested too deeply")

    @abstractmethod
    def members(self) -> list[Node]:
        """Elements between separators, up to the end or a closing bracket."""

    @abstractmethod
    def element(self) -> Node:
        """One member of an answer: words, or a statement with or without a unit."""

    @abstractmethod
    def words(self) -> Node:
        """A run of words."""

    @abstractmethod
    def sum(self) -> Node:
        """Terms with signs between them."""

    @abstractmethod
    def factor(self) -> Node:
        """One factor with its exponents and marks."""

    @abstractmethod
    def primary(self) -> Node:
        """One factor without them."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Whether a factor follows without an operator."""
