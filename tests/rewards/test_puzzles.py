"""Countdown and Sudoku, and the format terms of the released code."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.errors import UserError
from igpo_jax.rewards.formats import format_terms
from igpo_jax.rewards.puzzles import countdown_gold, judge_countdown, judge_sudoku, sudoku_cells, sudoku_grid
from igpo_jax.rewards.verdict import judge_one

GOLD = countdown_gold([8, 2, 3], 12)
SOLUTION = "1234341221434321"


@pytest.mark.parametrize(
    "answer",
    [
        "8/2*3",
        "3 * 8 / 2",
        r"\frac{8}{2} \times 3",
        "8 ÷ 2 * 3",
        r"(8 \div 2) \cdot 3",
        "8/2*3 = 12",
        "(8/2)3",
        "$8/2*3$",
    ],
)
def test_countdown_accepts_any_spelling_that_reaches_the_target(answer):
    assert judge_countdown(GOLD, answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("8+2+3", "the value is 13, not 12"),
        ("8+4", "uses [4, 8], not [2, 3, 8]"),
        ("8/2*3*1", "uses"),
        ("12", "uses"),
        ("8^2*3", "not an expression"),
        ("8!/2*3", "not an expression"),
        ("8/2*3*one", "not an expression"),
        ("82-3", "uses"),
        ("8 2/3", "not an expression"),
        ("8/(2-2)*3", "no value"),
        ("__import__('os')", "not an expression"),
        ("8/2*3" + "+0" * 200, "too long"),
        ("(" * 200, "not an expression"),
    ],
)
def test_countdown_refuses_everything_else(answer, reason):
    correct, why = judge_countdown(GOLD, answer)
    assert not correct
    assert reason in why


@given(st.lists(st.integers(1, 99), min_size=3, max_size=3), st.lists(st.sampled_from("+-*/"), min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_countdown_computes_like_python(numbers, signs):
    expression = f"{numbers[0]} {signs[0]} {numbers[1]} {signs[1]} {numbers[2]}"
    value = eval(expression)  # our own text
    target = round(value)
    assert judge_countdown(countdown_gold(numbers, target), expression)[0] == (abs(value - target) < 1e-12)


def test_sudoku_is_judged_digit_by_digit():
    assert judge_sudoku(SOLUTION, "1234 3412\n2143 4321") == (True, "solved")
    assert judge_sudoku(SOLUTION, "1234 3412\n2143 4312") == (False, "2 of 16 cells are wrong")
    assert not judge_sudoku(SOLUTION, "123434122143432")[0]
    assert sudoku_grid("the grid is " + SOLUTION) is None
    assert sudoku_cells("1230341221434320", SOLUTION, "1234341221434320") == 0.5


def test_the_kind_of_gold_decides_how_a_completion_is_judged():
    assert judge_one(GOLD, r"\boxed{8/2*3}", "countdown").correct
    assert judge_one(SOLUTION, f"<answer>\n{SOLUTION}\n</answer>", "sudoku").correct
    with pytest.raises(UserError, match="did you mean 'sudoku'"):
        judge_one(SOLUTION, "", "sudoko")
    with pytest.raises(UserError, match="expected numbers and target"):
        judge_one("12", r"\boxed{8}", "countdown")
    with pytest.raises(UserError, match="16 digits"):
        judge_one("12", r"\boxed{8}", "sudoku")


def test_format_terms_are_those_of_the_released_code():
    full = "<reasoning>\nwork\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>"
    assert sum(format_terms(full).values()) == 0.75
    assert sum(format_terms(full.replace("\\boxed{18}", "18")).values()) == 0.5
    assert format_terms(full + "</answer>")["answer_close"] == 0.0
    assert set(format_terms("").values()) == {0.0}
