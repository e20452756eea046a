"""Equality in value: agreement with plain Python arithmetic, and that no text upsets it."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.rewards.equality import compare, compare_quickly, equal

NUMBERS = st.fractions(min_value=-1000, max_value=1000, max_denominator=60)


def spellings(value: Fraction) -> list[str]:
    sign = "-" if value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    texts = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"{value.numerator}/{bottom}",
        f"{sign}\\dfrac{{{3 * top}}}{{{3 * bottom}}}",
    ]
    if bottom == 1:
        texts += [f"{value.numerator}", f"{value.numerator}.0", f"{value.numerator} apples", f"\\${value.numerator}"]
    if top > bottom > 1:
        texts.append(f"{sign}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}")
    return texts


@given(NUMBERS, NUMBERS, st.data())
@settings(max_examples=200, deadline=None)
def test_rational_numbers_are_equal_as_python_says(left, right, data):
    other = data.draw(st.sampled_from([left, right]))
    first, second = data.draw(st.sampled_from(spellings(left))), data.draw(st.sampled_from(spellings(other)))
    assert equal(first, second) == (left == other)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.randoms())
@settings(max_examples=100, deadline=None)
def test_lists_are_equal_as_sets_and_tuples_as_sequences(members, random):
    shuffled = members[:]
    random.shuffle(shuffled)
    listed = ", ".join(map(str, shuffled))
    assert equal(", ".join(map(str, members)), listed)
    assert equal(f"\\{{{', '.join(map(str, members))}\\}}", listed)
    assert equal(f"({', '.join(map(str, members))})", f"({listed})") == (members == shuffled)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_roots_are_equal_when_their_squares_are(left, right):
    root = math.isqrt(left)
    same = root * root * right == left
    assert equal(f"\\sqrt{{{left}}}", f"{root}\\sqrt{{{right}}}") == same


@given(st.text(max_size=40), st.text(alphabet="0123456789+-*/^_(){}[]|!,.:;=<>%$& xynie\\", max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_every_text_equals_itself(free, mathematical):
    compare(free, mathematical)
    compare(mathematical, free)
    assert equal(mathematical, mathematical) or not mathematical.strip()


@pytest.mark.parametrize(
    ("gold", "answer", "reason"),
    [
        ("5", "5", "same number"),
        ("5", "6", "different numbers"),
        (r"\text{east}", "east", "same text"),
        (r"\frac12", "0.5", "equal in value"),
        (r"\frac12", "0.6", "different in value"),
    ],
)
def test_the_reason_is_told(gold, answer, reason):
    assert compare(gold, answer).reason == reason


def test_a_side_that_is_not_understood_is_compared_as_text_only():
    assert not equal("5", "5 \\undefined{apples}")
    assert equal("5 \\undefined{A}", "5\\undefined{ a }")
    assert "not understood" in compare("5", "5 \\undefined{apples}").reason


def test_operations_of_calculus_are_left_to_sympy():
    assert compare("5050", r"\sum_{n=1}^{100} n").reason == "equal by sympy"
    assert equal(r"\frac{1}{3}", r"\int_0^1 x^2 dx")
    assert not equal("0.3333333333", r"\int_0^1 x^2 dx")


def test_long_answers_are_compared_as_text():
    long = "1+" * 3000 + "1"
    assert compare_quickly(long, long).equal
    assert not compare_quickly("3001", long).equal


def test_the_rewards_import_no_jax_and_no_sympy_early():
    code = (
        "import sys, igpo_jax.rewards.pool, igpo_jax.rewards.puzzles, igpo_jax.rewards.formats;"
        "igpo_jax.rewards.verdict.judge_one('1/2', 'boxed{0.5}');"
        "print([name for name in ('jax', 'flax', 'sympy', 'math_verify') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
