"""Equality of two answers in value: as text, as plain numbers, as trees, and last by sympy."""

import re
from dataclasses import dataclass

from igpo_jax.rewards.answers import symbolic
from igpo_jax.rewards.answers.cleaning import as_text, clean
from igpo_jax.rewards.answers.grammar import read_answer
from igpo_jax.rewards.answers.matching import same
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood
from igpo_jax.rewards.numbers import plain_number

#: Longer answers (in letters) are compared as text.
MAX_ANSWER = 2000

_CALCULUS = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|partial|det|nabla|bmod|pmod|mod|gcd|Pr|deg)(?![A-Za-z])")


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are equal, and a few words on why."""

    equal: bool
    reason: str


def equal(gold: str, answer: str) -> bool:
    """Whether two extracted answers are equal in value; never raises on any text.

    Without limits on time or memory: compare what a model wrote in a ``JudgePool``.
    """
    return compare(gold, answer).equal


def compare(gold: str, answer: str) -> Comparison:
    """Compares two extracted answers in value; never raises on any text.

    Both sides are read as a whole or not at all: where one is not understood, their normalised texts decide.
    """
    quick = compare_quickly(gold, answer)
    if quick is not None:
        return quick
    left, right = clean(gold), clean(answer)
    try:
        equal = same(_read(left), _read(right))
    except NotUnderstood as error:
        return _compare_unread(left, right, str(error))
    return Comparison(equal, "equal in value" if equal else "different in value")


def compare_quickly(gold: str, answer: str) -> Comparison | None:
    """The comparison where it needs no tree: the same text, plain numbers, or far too long; else None."""
    left, right = plain_number(gold), plain_number(answer)
    if left is not None and right is not None:
        return Comparison(left == right, "same number" if left == right else "different numbers")
    if len(gold) > MAX_ANSWER or len(answer) > MAX_ANSWER:
        equal = "".join(gold.split()) == "".join(answer.split())
        return Comparison(equal, "same text" if equal else "too long to read, different as text")
    if as_text(clean(gold)) == as_text(clean(answer)):
        return Comparison(True, "same text")
    return None


def needs_symbolic(gold: str, answer: str) -> bool:
    """Whether a comparison asks sympy: a side is outside the judge's grammar and names an operation of calculus."""
    sides = [clean(gold), clean(answer)]
    return any(map(_CALCULUS.search, sides)) and not all(map(_is_understood, sides))


def _read(cleaned: str) -> Node:
    try:
        return read_answer(cleaned)
    except RecursionError as error:
        raise NotUnderstood("nested too deeply") from error


def _is_understood(cleaned: str) -> bool:
    try:
        _read(cleaned)
    except NotUnderstood:
        return False
    return True


def _compare_unread(left: str, right: str, reason: str) -> Comparison:
    if as_text(left).lower() == as_text(right).lower():
        return Comparison(True, "same text")
    if _CALCULUS.search(left) or _CALCULUS.search(right):
        equal = symbolic.same_value(left, right)
        if equal is not None:
            return Comparison(equal, "equal by sympy" if equal else "different by sympy")
    shown = reason.encode("ascii", "backslashreplace").decode()  # it may quote the model
    return Comparison(False, f"not understood ({shown}), different as text")
