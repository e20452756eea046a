"""Properties of hint placement at the paper's settings and off them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion.schedule import transfer_counts
from igpo_jax.errors import UserError
from igpo_jax.rl.hints import HintSettings, cut_chunks, draw_ratios, place_hints

PAPER = HintSettings()


@st.composite
def cases(draw, pattern=None):
    length = draw(st.integers(0, 300))
    protected = np.zeros(length, bool)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(length - 1, 0)))
        protected[start : start + draw(st.integers(1, 40))] = True
    low = draw(st.integers(1, 8))
    hint_settings = HintSettings(
        chunk_min=low,
        chunk_max=low + draw(st.integers(0, 6)),
        answer_room=draw(st.integers(0, 60)),
        pattern=pattern or draw(st.sampled_from(["chunks", "prefix", "full"])),
    )
    ratio = draw(st.floats(0.0, 1.0))
    return protected, draw(st.integers(1, 256)), ratio, draw(st.integers(0, 2**32 - 1)), hint_settings


def place(case):
    protected, length, ratio, seed, hint_settings = case
    tokens = np.arange(len(protected)) + 1000
    return place_hints(tokens, protected, length, ratio, np.random.default_rng(seed), hint_settings)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_hints_stand_at_their_own_positions_and_never_show_a_protected_token(case):
    protected, length, ratio, _, hint_settings = case
    hints = place(case)
    at = np.flatnonzero(hints.canvas >= 0)
    np.testing.assert_array_equal(hints.canvas[at], at + 1000)
    np.testing.assert_array_equal(hints.source, np.where(hints.canvas >= 0, np.arange(length), -1))
    assert not protected[at].any()
    assert hints.canvas.dtype == np.int32 and hints.canvas.shape == (length,)
    assert (hints.canvas[max(length - hint_settings.answer_room, 0) :] == -1).all()
    assert hints.ratio == ratio
    np.testing.assert_array_equal(np.flatnonzero(hints.trace_placed(len(protected))), at)


@settings(max_examples=300, deadline=None)
@given(cases(pattern="chunks"))
def test_floor_of_ratio_times_chunks_and_whole_chunks_only(case):
    protected, length, ratio, seed, hint_settings = case
    hints = place(case)
    chunks = cut_chunks(len(protected), np.random.default_rng(seed), hint_settings)
    useful = [(a, b) for a, b in chunks if not protected[a:b].all()]
    assert hints.chunks == len(useful)
    assert hints.chunks_chosen == int(np.floor(ratio * len(useful) + 1e-9))
    limit = max(length - hint_settings.answer_room, 0)
    free = ~protected & (np.arange(len(protected)) < limit)
    placed = hints.trace_placed(len(protected))
    shown = [(a, b) for a, b in useful if placed[a:b].any()]
    assert all((placed[a:b] == free[a:b]).all() for a, b in shown)
    assert len(shown) == hints.chunks_chosen - hints.chunks_dropped
    assert placed.sum() <= hints.chunks_chosen * hint_settings.chunk_max


@settings(max_examples=200, deadline=None)
@given(cases(pattern="prefix"))
def test_a_prefix_has_no_hole(case):
    ratio, hints = case[2], place(case)
    count = (hints.canvas >= 0).sum()
    assert (hints.canvas[:count] >= 0).all()
    assert hints.chunks_chosen == int(np.floor(ratio * hints.chunks + 1e-9))


@settings(max_examples=200, deadline=None)
@given(cases(pattern="full"))
def test_full_shows_all_that_may_be_shown(case):
    protected, length, _, _, hint_settings = case
    hints = place(case)
    free = ~protected & (np.arange(len(protected)) < max(length - hint_settings.answer_room, 0))
    np.testing.assert_array_equal(hints.trace_placed(len(protected)), free)
    assert hints.chunks_chosen == hints.chunks


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 9))
def test_chunks_cover_the_trace_left_to_right(length, seed, low, more):
    chunks = cut_chunks(length, np.random.default_rng(seed), HintSettings(chunk_min=low, chunk_max=low + more))
    assert [a for a, _ in chunks] == [0, *(b for _, b in chunks)][: len(chunks)]
    assert (chunks[-1][1] if chunks else 0) == length
    assert all(low <= b - a <= low + more for a, b in chunks[:-1])


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_same_generator_gives_the_same_hints(case):
    first, second = place(case), place(case)
    np.testing.assert_array_equal(first.canvas, second.canvas)
    assert (first.chunks, first.chunks_dropped) == (second.chunks, second.chunks_dropped)


def test_paper_settings_show_between_their_bounds_and_drop_what_has_no_room():
    rng = np.random.default_rng(0)
    ratios = np.concatenate([draw_ratios(rng, 8, PAPER) for _ in range(40)])
    hints = [place_hints(np.arange(300), np.zeros(300, bool), 256, r, rng, PAPER) for r in ratios]
    share = np.array([(h.canvas[:226] >= 0).mean() for h in hints])
    assert share.min() > 0.1 and share.max() < 0.7
    assert abs(share.mean() - 0.4) < 0.02
    assert np.mean([h.chunks_dropped for h in hints]) > 1
    assert all(h.canvas[226:].max() == -1 for h in hints)
    lengths = np.diff(cut_chunks(5000, rng, PAPER)).ravel()[:-1]
    assert set(lengths) == set(range(5, 11))


def test_chunks_of_protected_tokens_alone_do_not_count():
    fixed = HintSettings(chunk_min=5, chunk_max=5, answer_room=0)
    protected = np.repeat([False, True, False, True], 5)
    hints = place_hints(np.arange(20), protected, 20, 0.5, np.random.default_rng(0), fixed)
    assert (hints.chunks, hints.chunks_chosen, hints.chunks_dropped) == (2, 1, 0)
    nothing = place_hints(np.arange(20), np.ones(20, bool), 20, 0.6, np.random.default_rng(0), fixed)
    assert nothing.chunks == 0 and (nothing.canvas == -1).all()


def test_floor_counts_as_on_paper():
    """Worked example: ten chunks at these ratios; 0.29 x 100 is a hair below 29 in floating point."""
    fixed = HintSettings(chunk_min=1, chunk_max=1, answer_room=0)
    for n, ratio, count in [(10, 0.25, 2), (10, 0.35, 3), (10, 0.4, 4), (10, 0.6, 6), (100, 0.29, 29)]:
        hints = place_hints(np.arange(n), np.zeros(n, bool), n, ratio, np.random.default_rng(1), fixed)
        assert hints.chunks_chosen == count == (hints.canvas >= 0).sum()


def test_a_short_canvas_has_no_room_for_hints():
    hints = place_hints(np.arange(40), np.zeros(40, bool), 30, 0.6, np.random.default_rng(0), PAPER)
    assert (hints.canvas == -1).all() and hints.chunks_dropped == hints.chunks_chosen > 0


@pytest.mark.parametrize(
    ("hinted", "schedule"), [(0, [2] * 16), (5, [2] * 11 + [1] * 5), (23, [1] * 9 + [0] * 7), (32, [0] * 16)]
)
def test_worked_schedule_of_a_block_with_hints(hinted, schedule):
    """Worked example: 32 positions and 16 steps; hints leave 27, 9 or no masks to reveal."""
    settings_of_block = HintSettings(pattern="full", answer_room=32 - hinted)
    hints = place_hints(np.arange(40), np.zeros(40, bool), 32, 1.0, np.random.default_rng(0), settings_of_block)
    assert transfer_counts((hints.canvas < 0).sum(), 16).tolist() == schedule


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 64))
def test_ratios_are_distinct_and_in_range(seed, count):
    ratios = draw_ratios(np.random.default_rng(seed), count, PAPER)
    assert len(np.unique(ratios)) == count
    assert (ratios >= 0.2).all() and (ratios <= 0.6).all()


def test_a_narrow_range_still_gives_distinct_ratios_and_a_point_gives_one():
    narrow = HintSettings(ratio_low=0.3, ratio_high=0.300001)
    assert len(np.unique(draw_ratios(np.random.default_rng(0), 64, narrow))) == 64
    point = HintSettings(ratio_low=1.0, ratio_high=1.0)
    np.testing.assert_array_equal(draw_ratios(np.random.default_rng(0), 3, point), [1.0, 1.0, 1.0])


def test_equal_draws_are_drawn_again():
    class Repeating:
        calls = 0

        def uniform(self, low, high, count):
            self.calls += 1
            return np.full(count, low) if self.calls == 1 else np.linspace(low, high, count)

    rng = Repeating()
    assert len(np.unique(draw_ratios(rng, 4, PAPER))) == 4 and rng.calls == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ratio_low": 0.7}, "ratio_low"),
        ({"ratio_high": 1.1}, "ratio_high"),
        ({"chunk_min": 0}, "chunk_min"),
        ({"chunk_max": 4}, "chunk_max"),
        ({"answer_room": -1}, "answer_room"),
        ({"pattern": "chunk"}, "pattern"),
        ({"exclude": "all"}, "exclude"),
        ({"placement": "code"}, "placement"),
        ({"placement": "official", "pattern": "full"}, "official"),
        ({"placement": "official", "ratio_high": 1.0}, "official"),
    ],
)
def test_bad_settings_are_named(change, field):
    with pytest.raises(UserError, match=field):
        HintSettings(**change)


def test_lengths_must_agree():
    with pytest.raises(UserError, match="4 entries for 5"):
        place_hints(np.arange(5), np.zeros(4, bool), 40, 0.5, np.random.default_rng(0), PAPER)
