"""Step by step gives what the compiled loop gives, and every step is seen on the way."""

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.stepwise import denoise_stepwise
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import mesh as meshes
from igpo_jax.parallel import sharding

BATCH, WIDTH, EOS = 4, 5, 39

SAMPLERS = {
    "greedy": denoise.Sampler(length=12, steps=9, block_length=4),
    "guided": denoise.Sampler(length=8, steps=3, block_length=8, eos_exit="none", cfg_scale=0.8),
    "open_masks": denoise.Sampler(length=12, steps=4, block_length=6, step_budget="open_masks", temperature=0.8),
    "random": denoise.Sampler(length=10, steps=4, block_length=5, selection="random", suppress_eos_logits=True),
    "batch_exit": denoise.Sampler(length=12, steps=6, block_length=4, eos_exit="batch", forbid_mask=False),
    "row_exit": denoise.Sampler(length=12, steps=6, block_length=4, temperature=0.5),
}


def inputs(name, sampler, prompts):
    rng = np.random.default_rng(5)
    tokens, valid = prompts(rng, BATCH, WIDTH)
    shape = (BATCH, sampler.length)
    hints = np.where(rng.uniform(size=shape) < 0.25, rng.integers(0, 38, shape), -1).astype(np.int32)
    bias = np.zeros(40, np.float32)
    if name.endswith("exit"):
        # Every block comes out as EOS where nothing is given, so masks are left to fill.
        hints[:, :8], bias[EOS] = -1, 50
    keys = noise.row_keys(jax.random.key(1), "generate", 0, np.arange(BATCH))
    return tokens, valid, noise.KeyNoise(keys), hints, bias


def assert_same(one, other):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(sharding.to_host(ours), sharding.to_host(theirs))


@pytest.mark.parametrize("name", SAMPLERS)
def test_equals_the_compiled_loop(small, prompts, name):
    sampler = SAMPLERS[name]
    tokens, valid, source, hints, bias = inputs(name, sampler, prompts)
    seen = []
    out = denoise_stepwise(*small, sampler, tokens, valid, source, seen.append, hints=hints, logit_bias=bias)
    recording = denoise.Sampler(**{**vars(sampler), "record": True})
    loop = denoise.denoise(*small, recording, tokens, valid, source, hints=hints, logit_bias=bias)
    np.testing.assert_array_equal(out.trace.revealed, loop.trace.revealed)
    np.testing.assert_allclose(out.trace.confidence, loop.trace.confidence, atol=1e-6, rtol=0)
    assert_same((out.tokens, out.reveal_step, out.forwards, out.steps_needed), tuple(vars(loop).values())[:4])
    assert_same(out.trace.tokens, loop.trace.tokens)
    assert [moment.step for moment in seen] == np.flatnonzero(loop.trace.ran).tolist()
    assert all(moment.block == moment.step // sampler.steps_per_block for moment in seen)
    for moment in seen:
        np.testing.assert_array_equal(moment.tokens, loop.trace.tokens[moment.step])
    assert (np.asarray(out.tokens)[:, -4:] == EOS).any() == name.endswith("exit")


def test_works_on_a_mesh(small, prompts):
    sampler, (policy, model) = SAMPLERS["row_exit"], small
    tokens, valid, source, hints, bias = inputs("row_exit", sampler, prompts)
    alone = denoise_stepwise(*small, sampler, tokens, valid, source, lambda _: None, hints=hints, logit_bias=bias)
    mesh = meshes.make_mesh(meshes.MeshSettings(2, 2, 2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(policy, llada.Policy(llada.shardings(model.config, mesh)))
        rows = sharding.shard_batch((tokens, valid, hints), mesh)
        keys = noise.row_keys(jax.random.key(1), "generate", 0, sharding.shard_batch(np.arange(BATCH), mesh))
        out = denoise_stepwise(
            placed, model, sampler, *rows[:2], noise.KeyNoise(keys), lambda _: None, hints=rows[2], logit_bias=bias
        )
    assert_same(out.tokens, alone.tokens)


def test_bad_inputs_stop_at_the_door(small):
    sampler = SAMPLERS["row_exit"]
    with pytest.raises(UserError, match="no noise"):
        denoise_stepwise(*small, sampler, np.zeros((1, 3), np.int32), np.ones((1, 3), bool), None, lambda _: None)
