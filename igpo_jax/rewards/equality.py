"""Equality of two answers in value."""

from dataclasses import dataclass

from igpo_jax.rewards.numbers import plain_number


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are equal, and a few words on why."""

    equal: bool
    reason: str


def equal(gold: str, answer: str) -> bool:
    """Whether two extracted answers are equal in value; never raises on any text."""
    return compare(gold, answer).equal


def compare(gold: str, answer: str) -> Comparison:
    """Compares two extracted answers in value; never raises on any text."""
    return compare_quickly(gold, answer) or Comparison(False, "different")


def compare_quickly(gold: str, answer: str) -> Comparison | None:
    """The comparison where both sides are the same text or plain numbers, else None."""
    if "".join(gold.split()) == "".join(answer.split()):
        return Comparison(True, "same text")
    left, right = plain_number(gold), plain_number(answer)
    if left is None or right is None:
        return None
    return Comparison(left == right, "same number" if left == right else "different numbers")


def needs_symbolic(gold: str, answer: str) -> bool:
    """Whether the comparison will ask sympy."""
    return False
