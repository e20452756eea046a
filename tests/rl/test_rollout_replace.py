"""Replacement: at most floor(lambda G) verified completions a group, only where all were wrong, rows swapped whole."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl.rollout import REPLACE_ORDERS, RolloutSettings, Round, replace


def make_round(correct, offset):
    """A round whose row r carries the number offset + r in every field."""
    numbers = offset + np.arange(len(correct))
    column = numbers[:, None].astype(np.int32)
    return Round(
        tokens=np.repeat(column, 2, axis=1),
        reveal_step=column.copy(),
        hint_mask=np.repeat((numbers[:, None] >= 1000), 2, axis=1),
        texts=[str(n) for n in numbers],
        verdicts=[Verdict(bool(c), str(n), "made", False) for c, n in zip(correct, numbers, strict=True)],
        ratios=numbers.astype(float),
    )


def numbers_of(result):
    """The number in each row, after checking that all fields agree on it."""
    numbers = result.tokens[:, 0]
    np.testing.assert_array_equal(result.tokens[:, 1], numbers)
    np.testing.assert_array_equal(result.reveal_step[:, 0], numbers)
    np.testing.assert_array_equal(result.ratios, numbers)
    np.testing.assert_array_equal(result.hint_mask, np.repeat((numbers >= 1000)[:, None], 2, axis=1))
    assert result.texts == [str(n) for n in numbers]
    assert [v.answer for v in result.verdicts] == result.texts
    return numbers.tolist()


@st.composite
def cases(draw):
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    wrong = sorted(draw(st.sets(st.integers(0, groups - 1))))
    # Lambda as a user writes it, with a few decimals.
    share = draw(st.integers(0, 100))
    correct = draw(st.lists(st.booleans(), min_size=len(wrong) * size, max_size=len(wrong) * size))
    return (
        groups,
        size,
        np.array(wrong, int),
        share,
        correct,
        draw(st.sampled_from(REPLACE_ORDERS)),
        draw(st.integers(0, 9)),
    )


def run(case):
    groups, size, wrong, share, correct, order, seed = case
    settings = RolloutSettings(groups=groups, group_size=size, replace_fraction=share / 100, replace_order=order)
    first = make_round([False] * (groups * size), 0)
    second = make_round(correct, 1000)
    result, replaced = replace(first, second, wrong, settings, np.random.default_rng(seed))
    assert numbers_of(first) == list(range(groups * size)), "the first round itself is left alone"
    return numbers_of(result), replaced, result


@hypothesis_settings(deadline=None)
@given(cases())
def test_replacement_follows_the_rules(case):
    groups, size, wrong, share, correct, order, _ = case
    numbers, replaced, result = run(case)
    limit = int(Fraction(share, 100) * size)
    for group in range(groups):
        rows = range(group * size, (group + 1) * size)
        swapped = [row for row in rows if replaced[row]]
        assert all(numbers[row] == row for row in rows if row not in swapped), "the others are the originals"
        if group not in wrong:
            assert not swapped
            continue
        place = wrong.tolist().index(group) * size
        good = [row for row in range(place, place + size) if correct[row]]
        assert len(swapped) == min(len(good), limit)
        sources = [numbers[row] - 1000 for row in swapped]
        assert len(set(sources)) == len(sources) and set(sources) <= set(good), "verified ones of the same group, once"
        if order == "first":
            assert swapped == list(rows)[: len(swapped)]
    assert result.correct.tolist() == replaced.tolist(), "what was swapped in is right, what stayed is wrong"


@hypothesis_settings(deadline=None)
@given(cases())
def test_replacement_is_a_function_of_its_generator(case):
    assert run(case)[0] == run(case)[0]


def test_random_order_reaches_every_slot_and_every_candidate_evenly():
    slots, sources = np.zeros(6), np.zeros(6)
    for seed in range(600):
        numbers, replaced, _ = run((1, 6, np.array([0]), 50, [True] * 6, "random", seed))
        slots[replaced] += 1
        sources[[n - 1000 for n in numbers if n >= 1000]] += 1
    # Each is chosen with probability a half; 300 +- 5 standard deviations of 12.2.
    assert slots.sum() == sources.sum() == 1800
    assert (np.abs(slots - 300) < 61).all() and (np.abs(sources - 300) < 61).all()


def test_first_order_still_draws_among_the_candidates():
    seen = {tuple(run((1, 4, np.array([0]), 50, [True] * 4, "first", seed))[0][:2]) for seed in range(80)}
    assert {frozenset(pair) for pair in seen} == {frozenset((1000 + a, 1000 + b)) for a in range(4) for b in range(a)}


@pytest.mark.parametrize(
    ("size", "share", "count"),
    [(8, 0.5, 4), (6, 1 / 3, 2), (7, 0.5, 3), (8, 1.0, 8), (8, 0.1, 0), (50, 0.58, 29), (22, 15 / 22, 15)],
)
def test_floor_of_lambda_times_group_size(size, share, count):
    settings = RolloutSettings(group_size=size, replace_fraction=share)
    first, second = make_round([False] * size, 0), make_round([True] * size, 1000)
    assert replace(first, second, np.array([0]), settings, np.random.default_rng(0))[1].sum() == count
