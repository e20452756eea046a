"""One device and eight give the same draws, tokens and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import denoise, likelihood, masking, noise
from igpo_jax.models import llada
from igpo_jax.parallel import mesh as meshes
from igpo_jax.parallel import sharding

BATCH, WIDTH, MASK = 8, 5, 38
SAMPLERS = (
    denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0),
    denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, record=True),
    denoise.Sampler(length=8, steps=2, block_length=8, cfg_scale=0.5, selection="random", eos_exit="batch"),
)


@pytest.fixture(params=[(8, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
    return meshes.make_mesh(meshes.MeshSettings(*request.param))


def keys_of(rows):
    return noise.row_keys(jax.random.key(21), "rollout", 1, rows)


@pytest.fixture(scope="module")
def batch(prompts):
    rng = np.random.default_rng(1)
    tokens, valid = prompts(rng, BATCH, WIDTH)
    hints = np.where(rng.uniform(size=(BATCH, 12)) < 0.2, rng.integers(0, 38, (BATCH, 12)), -1).astype(np.int32)
    return tokens, valid, hints


def sharded(small, mesh):
    policy, model = small
    return jax.device_put(policy, llada.Policy(llada.shardings(model.config, mesh))), model


@pytest.fixture(scope="module", params=SAMPLERS, ids=["own pace", "recorded", "guided"])
def one_device(request, small, batch, plain_loop):
    """(sampler, result on one device), for an example without a decision that rounding could turn."""
    sampler = request.param
    tokens, valid, hints = batch
    source = noise.KeyNoise(keys_of(np.arange(BATCH)))
    shape = (BATCH, sampler.block_length)
    gumbels = np.stack([source.gumbel(step, (*shape, 40)) for step in range(sampler.steps)])
    uniforms = np.stack([source.uniform(step, shape) for step in range(sampler.steps)])
    pairs = np.stack([source.token_uniforms(step, shape) for step in range(sampler.steps)])
    hints = hints[:, : sampler.length]
    loop = plain_loop(*small, sampler, tokens, valid, hints, sampler.temperature, gumbels, uniforms, pairs=pairs)
    assert loop.gap > 1e-3, "choose another seed"
    out = denoise.denoise(*small, sampler, tokens, valid, source, hints=hints)
    np.testing.assert_array_equal(out.tokens, loop.tokens)
    return sampler, out


def test_tokens_are_equal_on_one_and_eight_devices(small, batch, one_device, mesh):
    sampler, one = one_device
    tokens, valid, hints = batch
    policy, model = sharded(small, mesh)
    with jax.set_mesh(mesh):
        inputs = (tokens, valid, hints[:, : sampler.length], np.arange(BATCH))
        tokens, valid, hints, rows = sharding.shard_batch(inputs, mesh)
        eight = denoise.denoise(policy, model, sampler, tokens, valid, noise.KeyNoise(keys_of(rows)), hints=hints)
    assert eight.tokens.sharding.spec[0] == ("data", "fsdp")
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_array_equal(one.reveal_step, eight.reveal_step)
    np.testing.assert_array_equal(one.steps_needed, eight.steps_needed)
    assert int(one.forwards) == int(eight.forwards)


def test_host_arrays_are_spread_over_the_mesh(small, batch):
    mesh = meshes.make_mesh(meshes.MeshSettings(2, 2, 2))
    tokens, valid, hints = batch
    sampler = SAMPLERS[0]
    one = denoise.denoise(*small, sampler, tokens, valid, noise.KeyNoise(keys_of(np.arange(BATCH))), hints=hints)
    policy, model = sharded(small, mesh)
    with jax.set_mesh(mesh):
        source = noise.KeyNoise(keys_of(np.arange(BATCH)))
        eight = denoise.denoise(policy, model, sampler, tokens, valid, source, hints=hints)
    assert eight.tokens.sharding.spec[0] == ("data", "fsdp")
    np.testing.assert_array_equal(one.tokens, eight.tokens)


def test_draws_are_equal_bit_for_bit(mesh):
    def draws(rows):
        source = noise.KeyNoise(keys_of(rows))
        return (
            source.gumbel(jnp.int32(3), (BATCH, 4, 16)),
            source.uniform(jnp.int32(3), (BATCH, 4)),
            source.token_uniforms(3, (BATCH, 4)),
        )

    one = draws(np.arange(BATCH))
    with jax.set_mesh(mesh):
        eight = jax.jit(draws)(sharding.shard_batch(np.arange(BATCH), mesh))
    jax.tree.map(np.testing.assert_array_equal, one[1:], eight[1:])
    # Logarithms may differ in the last place between vectorised loops of different width.
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-6)


def test_forward_process_is_equal(mesh):
    completion = np.arange(BATCH * 6, dtype=np.int32).reshape(BATCH, 6) % 30

    @jax.jit
    def noised(rows, completion):
        return masking.sft_noise(keys_of(rows), completion, jnp.ones_like(completion, dtype=bool), MASK)

    one = noised(np.arange(BATCH), completion)
    with jax.set_mesh(mesh):
        eight = noised(*sharding.shard_batch((np.arange(BATCH), completion), mesh))
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_array_equal(one.masked, eight.masked)
    np.testing.assert_allclose(one.probability, eight.probability, rtol=1e-6)


@jax.jit(static_argnums=1)
def scores_and_gradients(policy, model, arrays):
    def loss(policy):
        scores = likelihood.score(policy, model, *arrays, chunk=4)
        return (scores.logp * jnp.arange(10)).sum(), scores

    grads, scores = jax.grad(loss, has_aux=True)(policy)
    return scores, grads


@pytest.fixture(scope="module")
def scored(small, batch):
    """(inputs, scores and gradients on one device)."""
    tokens, valid, _ = batch
    rng = np.random.default_rng(4)
    completion = rng.integers(0, 38, (BATCH, 10)).astype(np.int32)
    inputs = (tokens, valid, completion, rng.uniform(size=completion.shape) < 0.8)
    return inputs, scores_and_gradients(*small, inputs)


def test_scores_and_gradients_are_equal(small, scored, mesh):
    inputs, (one, one_grads) = scored
    policy, model = sharded(small, mesh)
    with jax.set_mesh(mesh):
        eight, eight_grads = scores_and_gradients(policy, model, sharding.shard_batch(inputs, mesh))
    np.testing.assert_allclose(one.logp, eight.logp, atol=1e-5, rtol=0)
    np.testing.assert_allclose(one.entropy, eight.entropy, atol=1e-5, rtol=0)
    assert eight.logp.sharding.spec[0] == ("data", "fsdp")
    for ours, theirs in zip(jax.tree.leaves(one_grads), jax.tree.leaves(eight_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(ours).max()))


def test_a_batch_of_one_row_on_a_mesh(small, batch):
    """Devices that share the model have a single row between them; the head sees a part of its block."""
    tokens, valid, _ = (array[:1] for array in batch)
    sampler = denoise.Sampler(length=16, steps=4, block_length=16)
    wanted = denoise.denoise(*small, sampler, tokens, valid, None)
    ways = meshes.make_mesh(meshes.MeshSettings(1, 1, 2), jax.devices()[:2])
    policy, model = sharded(small, ways)
    with jax.set_mesh(ways):
        rows = sharding.shard_batch((tokens, valid), ways)
        found = denoise.denoise(policy, model, sampler, *rows, None)
    np.testing.assert_array_equal(sharding.to_host(found.tokens), wanted.tokens)
