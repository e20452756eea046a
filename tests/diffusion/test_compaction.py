"""Rows that finish leave the program: the tokens of the batch that stays together, for fewer row-forwards."""

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.compaction import denoise_compacted
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import mesh as meshes
from igpo_jax.parallel import sharding

ROWS, EOS, WORD = 8, 39, 7
BIAS = np.where(np.arange(40) == EOS, 20, 0).astype(np.float32)  # whatever is free ends
SAMPLER = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, pace="block")


@pytest.fixture(scope="module")
def batch(prompts):
    """Prompts, keys and hints: rows 0 to 3 end with their first block, 4 and 5 are given but for it, 6 and 7 go on."""
    tokens, valid = prompts(np.random.default_rng(2), ROWS, 5)
    hints = np.full((ROWS, 12), -1, np.int32)
    hints[4:6, 4:] = WORD
    hints[6:, [1, 6, 9]] = WORD
    return tokens, valid, hints


def keys(rows):
    return noise.KeyNoise(noise.row_keys(jax.random.key(5), "rollout", 0, rows))


@pytest.fixture(scope="module")
def together(small, batch):
    return denoise.denoise(*small, SAMPLER, *batch[:2], keys(np.arange(ROWS)), hints=batch[2], logit_bias=BIAS)


def assert_equal(done, together):
    np.testing.assert_array_equal(done.tokens, together.tokens)
    np.testing.assert_array_equal(done.reveal_step, together.reveal_step)
    np.testing.assert_array_equal(done.steps_needed, together.steps_needed)
    assert int(done.forwards) == int(together.forwards)


def test_tokens_are_those_of_the_batch_that_stays_together(small, batch, together):
    source = keys(np.arange(ROWS))
    got = denoise_compacted(*small, SAMPLER, *batch[:2], source, (2, 4, 8), hints=batch[2], logit_bias=BIAS)
    assert_equal(got.denoised, together)
    assert got.sizes == (8, 2, 2)
    assert got.row_forwards_paid < ROWS * int(together.forwards)
    assert got.row_forwards_paid >= int(np.asarray(together.steps_needed).sum())


def test_without_smaller_sizes_it_pays_what_the_batch_pays(small, batch, together):
    got = denoise_compacted(*small, SAMPLER, *batch[:2], keys(np.arange(ROWS)), (8,), hints=batch[2], logit_bias=BIAS)
    assert_equal(got.denoised, together)
    assert set(got.sizes) == {8} and got.row_forwards_paid == 8 * int(together.forwards)


def test_rows_move_between_the_devices_of_a_mesh(small, batch, together):
    policy, model = small
    mesh = meshes.make_mesh(meshes.MeshSettings(2, 1, 1), jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = jax.device_put(policy, llada.Policy(llada.shardings(model.config, mesh)))
        source = keys(sharding.shard_batch(np.arange(ROWS), mesh))
        got = denoise_compacted(placed, model, SAMPLER, *batch[:2], source, (2, 4, 8), hints=batch[2], logit_bias=BIAS)
    assert got.sizes == (8, 2, 2)
    assert_equal(got.denoised, together)


def test_a_batch_that_is_given_whole_costs_nothing(small, batch):
    whole = np.full((ROWS, 12), WORD, np.int32)
    got = denoise_compacted(*small, SAMPLER, *batch[:2], keys(np.arange(ROWS)), (4, 8), hints=whole)
    assert (got.denoised.tokens == WORD).all()
    assert got.row_forwards_paid == 0 and got.sizes == ()


@pytest.mark.parametrize("changes", [{"eos_exit": "batch"}, {"record": True}])
def test_what_needs_all_rows_together_is_refused(small, batch, changes):
    sampler = denoise.Sampler(length=12, steps=6, block_length=4, **changes)
    with pytest.raises(UserError, match="compaction takes apart"):
        denoise_compacted(*small, sampler, *batch[:2], None, (4, 8))
