"""Rows into programs: nothing lost, few sizes, like needs together, and the needs are those of the sampler."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion import denoise
from igpo_jax.rl import packing
from tests.rl.rollout_cases import MODEL, network, question

NEEDS = st.lists(st.integers(0, 9), min_size=0, max_size=60)


@pytest.mark.parametrize(
    ("largest", "multiple", "levels", "sizes"),
    [
        (64, 1, 4, (8, 16, 32, 64)),
        (64, 8, 4, (8, 16, 32, 64)),
        (64, 16, 4, (16, 32, 64)),
        (24, 8, 4, (24,)),
        (12, 2, 4, (6, 12)),
        (8, 8, 4, (8,)),
        (7, 1, 4, (7,)),
        (64, 1, 2, (32, 64)),
    ],
)
def test_sizes_are_halves_that_divide_over_the_shards(largest, multiple, levels, sizes):
    assert packing.bucket_sizes(largest, multiple, levels) == sizes


@settings(deadline=None)
@given(NEEDS, st.sampled_from([(4,), (2, 4, 8), (3, 6), (8, 16, 32, 64)]))
def test_every_row_travels_once_in_a_program_of_a_known_size(needs, sizes):
    packs = packing.pack(needs, sizes)
    assert sorted(row for pack in packs for row in pack.rows) == list(range(len(needs)))
    for pack in packs:
        assert pack.size in sizes
        assert 0 < len(pack.rows) <= pack.size
    # All but the last program are full and of the largest size; the last one is the smallest that holds the rest.
    assert all(len(pack.rows) == pack.size == sizes[-1] for pack in packs[:-1])
    if packs:
        rest = len(packs[-1].rows)
        assert packs[-1].size == min(size for size in sizes if size >= rest)


@settings(deadline=None)
@given(NEEDS)
def test_rows_of_like_need_share_a_program_dear_ones_first(needs):
    packs = packing.pack(needs, (2, 4, 8))
    order = [needs[row] for pack in packs for row in pack.rows]
    assert order == sorted(needs, reverse=True)
    rows = [row for pack in packs for row in pack.rows]
    for before, after in itertools.pairwise(rows):
        assert needs[before] > needs[after] or before < after, "equal needs keep their order"


@settings(deadline=None)
@given(st.data())
def test_forwards_needed_is_what_a_plain_count_says(data):
    blocks, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    steps_per_block = data.draw(st.integers(1, width))
    rows = data.draw(st.integers(1, 3))
    cells = data.draw(st.lists(st.booleans(), min_size=rows * blocks * width, max_size=rows * blocks * width))
    open_masks = np.array(cells, bool).reshape(rows, blocks * width)
    expected = []
    for row in open_masks:
        count = 0
        for block in range(blocks):
            masks = int(row[block * width : (block + 1) * width].sum())
            # The schedule reveals masks // steps tokens a step, one more in the first masks % steps steps.
            base, rest = divmod(masks, steps_per_block)
            count += sum(base + (step < rest) > 0 for step in range(steps_per_block))
        expected.append(count)
    assert packing.forwards_needed(open_masks, width, steps_per_block * blocks).tolist() == expected


def test_forwards_needed_is_what_the_sampler_reports():
    rng = np.random.default_rng(0)
    sampler = denoise.Sampler(length=16, steps=6, block_length=8, eos_exit="none")
    hints = np.where(rng.random((16, 16)) < rng.random((16, 1)), rng.integers(0, 38, (16, 16)), -1).astype(np.int32)
    hints[0], hints[1], hints[2, :8], hints[3, 8:] = -1, 7, 7, 7
    asked = question(0)
    prompts = np.repeat(asked.prompt_tokens[None], 16, axis=0), np.repeat(asked.prompt_mask[None], 16, axis=0)
    result = denoise.denoise(network(), MODEL, sampler, *prompts, None, hints=hints)
    needs = packing.forwards_needed(hints < 0, sampler.block_length, sampler.steps)
    assert set(needs) >= {0, 3, 6}, "the example covers rows without work and rows with all of it"
    np.testing.assert_array_equal(np.asarray(result.steps_needed), needs)
