"""Equality of two answers in value."""

from fractions import Fraction

from igpo_jax.rewards.numbers import plain_number


def equal(gold: str, answer: str) -> bool:
    """Whether two extracted answers are equal in value; never raises on any text."""
    left, right = plain_number(gold), plain_number(answer)
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    return "".join(gold.split()) == "".join(answer.split())
