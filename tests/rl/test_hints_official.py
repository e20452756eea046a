"""Parity with the released code's placement: from the seed alone, for every recorded case."""

import dataclasses
import random

import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.rl.hints import HintSettings, draw_ratios, place_hints, place_hints_official
from igpo_jax.rl.official_hints import official_layout, spread_chunks

OFFICIAL = HintSettings(placement="official")
MASK = 500


def pairs(array) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in np.asarray(array).reshape(-1, 2))


def settings_of(case) -> HintSettings:
    return dataclasses.replace(
        OFFICIAL,
        chunk_min=int(case["min_chunk_size"]),
        chunk_max=int(case["max_chunk_size"]),
        max_spacing=int(case.get("max_spacing", 100)),
    )


@pytest.mark.parametrize("name", [f"hint{n:02d}" for n in range(11)])
def test_recorded_placements(golden, name):
    case = golden("hints")[name]
    length, answer, ratio = int(case["gen_length"]), case["answer"], float(case["inpaint_ratio"])
    settings = settings_of(case)
    layout = official_layout(
        len(answer),
        length - 30,
        ratio,
        random.Random(int(case["seed"])),
        chunk_min=settings.chunk_min,
        chunk_max=settings.chunk_max,
        max_spacing=settings.max_spacing,
        reveal_last=bool(case["last_chunk"]),
    )
    assert layout.masked == pairs(case["masked_chunks"])
    assert layout.revealed == pairs(case["revealed_chunks"])
    assert layout.spread == pairs(case["scaled_chunks"])
    if length > 30:
        assert layout.scale == case["scaling_factor"]
    hints = place_hints_official(
        answer, length, ratio, random.Random(int(case["seed"])), settings, bool(case["last_chunk"])
    )
    canvas = np.where(hints.canvas >= 0, hints.canvas, MASK)
    np.testing.assert_array_equal(np.concatenate([case["question"][0], canvas]), case["input_sequence"][0])
    np.testing.assert_array_equal(hints.canvas == -1, case["target_mask"][0, len(case["question"][0]) :])


def test_recorded_inpainting_inputs(golden):
    checked = 0
    for name, case in golden("inpaint").items():
        if not name.startswith("official_chunks"):
            continue
        prompt = case["prompt"].shape[1]
        length = case["first_input"].shape[1] - prompt
        for row, expected in enumerate(case["first_input"][:, prompt:]):
            ratio = float(np.broadcast_to(case["inpaint_ratio"], len(case["first_input"]))[row])
            rng = random.Random(int(case["hint_seed"]) + row)
            hints = place_hints_official(case["answer"].ravel(), length, ratio, rng, settings_of(case))
            np.testing.assert_array_equal(np.where(hints.canvas >= 0, hints.canvas, int(case["mask_id"])), expected)
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("length", "revealed", "expected"),
    [
        (100, ((0, 8), (20, 28), (92, 100)), ((0, 8), (26, 34), (130, 138))),
        (200, ((7, 14), (92, 100)), ((7, 14), (102, 110))),
        (40, ((30, 38),), ((45, 53),)),
    ],
)
def test_worked_spacing(length, revealed, expected):
    """Worked examples with 226 places for hints."""
    scale = min(max(226 / length, 1.0), 1.5)
    assert spread_chunks(revealed, scale, 226, 100) == expected


def test_what_finds_no_room_is_cut_or_left_out():
    assert spread_chunks(((0, 8), (10, 18), (20, 28)), 1.5, 14, 100) == ((0, 8), (11, 14))
    # Gaps are widened to at most max_spacing; the first start is not a gap.
    assert spread_chunks(((40, 45), (60, 65)), 1.5, 226, 4) == ((60, 65), (69, 74))


@pytest.mark.parametrize(("ratio", "shown", "floor"), [(0.25, 3, 2), (0.35, 4, 3), (0.4, 4, 4), (0.6, 6, 6)])
def test_revealed_counts_round_up(ratio, shown, floor):
    """Worked example: of ten chunks, before the last one is forced; the paper's floor beside it."""
    sizes = {"chunk_min": 5, "chunk_max": 5, "max_spacing": 100}
    layout = official_layout(50, 226, ratio, random.Random(3), reveal_last=False, **sizes)
    assert len(layout.revealed) == shown
    forced = official_layout(50, 226, ratio, random.Random(3), reveal_last=True, **sizes)
    assert forced.revealed[-1] == (45, 50)
    assert set(layout.revealed) <= set(forced.revealed)
    fixed = HintSettings(chunk_min=5, chunk_max=5)
    assert (
        place_hints(np.arange(50), np.zeros(50, bool), 256, ratio, np.random.default_rng(0), fixed).chunks_chosen
        == floor
    )


def test_place_hints_dispatches_and_is_keyed_by_the_generator():
    tokens, protected = np.arange(120) + 7, np.ones(120, bool)
    one = place_hints(tokens, protected, 256, 0.4, np.random.default_rng(5), OFFICIAL)
    two = place_hints(tokens, protected, 256, 0.4, np.random.default_rng(5), OFFICIAL)
    np.testing.assert_array_equal(one.canvas, two.canvas)
    at = one.canvas >= 0
    assert at.any() and not at[226:].any()
    np.testing.assert_array_equal(one.canvas[at], tokens[one.source[at]])
    assert one.trace_placed(120).sum() == at.sum()
    assert one.chunks_chosen >= np.ceil(0.4 * one.chunks)


def test_ratios_are_sorted_as_in_the_released_code():
    ratios = draw_ratios(np.random.default_rng(0), 8, OFFICIAL)
    assert (np.diff(ratios) > 0).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_ratios_that_crash_the_released_code_are_refused(ratio):
    with pytest.raises(UserError, match="strictly between"):
        place_hints_official(np.arange(50), 256, ratio, random.Random(0), OFFICIAL)
