"""Gradients over micro-batches are exactly those of the whole batch, however its tokens are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.parallel import sharding
from igpo_jax.rl.objectives import LossSums
from igpo_jax.training import accumulate
from tests.training.tiny import MESHES, assert_close, mesh_of

ROWS, WIDTH = 16, 6
WEIGHT = {"w": np.linspace(-1, 1, WIDTH).astype(np.float32), "b": np.float32(0.5)}


@pytest.fixture(scope="module")
def batch():
    """Features and a mask that keeps between none and all places of a row."""
    rng = np.random.default_rng(0)
    kept = np.arange(WIDTH) < rng.integers(0, WIDTH + 1, ROWS)[:, None]
    kept[3], kept[5] = False, True
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32), kept


def loss(params, part):
    """A token mean: its denominator is the number of kept places, which differs from part to part."""
    x, kept = part
    y = jnp.tanh(x * params["w"] + params["b"])
    kept = kept.astype(jnp.float32)
    return LossSums(
        jnp.sum(kept * y**2),
        jnp.sum(kept),
        {"mean_y": (jnp.sum(kept * y), jnp.sum(kept)), "never": (0.0 * jnp.sum(y), 0.0 * jnp.sum(y))},
    )


def mean_loss(params, batch):
    """The same mean over the whole batch at once."""
    x, kept = batch
    y = jnp.tanh(x * params["w"] + params["b"])
    return (kept * y**2).sum() / kept.sum()


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_parts_add_up_to_the_global_mean(batch, count):
    grads, value, metrics = jax.jit(lambda p, b: accumulate.gradients(loss, p, b, count))(WEIGHT, batch)
    expected, expected_grads = jax.value_and_grad(lambda p: mean_loss(p, batch))(jax.tree.map(jnp.asarray, WEIGHT))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert_close(grads, expected_grads, 1e-7)
    x, kept = batch
    assert float(metrics["mean_y"]) == pytest.approx(np.tanh(x * WEIGHT["w"] + WEIGHT["b"])[kept].mean(), rel=1e-5)
    assert np.isnan(float(metrics["never"])), "a mean over nothing is missing, not 0"


def test_parts_hold_unequal_numbers_of_tokens(batch):
    counts = np.asarray(sharding.micro_batches(jnp.asarray(batch[1]), 4)).sum(axis=(1, 2))
    assert len(set(counts.tolist())) > 1, "otherwise a mean of means would pass"


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_sharded_batch_gives_the_same(batch, shape, count):
    mesh = mesh_of(MESHES[shape])
    _, expected = jax.value_and_grad(lambda p: mean_loss(p, batch))(jax.tree.map(jnp.asarray, WEIGHT))
    with jax.set_mesh(mesh):
        placed = sharding.shard_batch(batch, mesh)
        params = sharding.replicate(WEIGHT, mesh)
        grads, _, _ = jax.jit(lambda p, b: accumulate.gradients(loss, p, b, count))(params, placed)
    assert_close(grads, expected, 1e-7)


def test_an_empty_denominator_gives_zero_gradients(batch):
    nothing = (batch[0], np.zeros_like(batch[1]))
    grads, value, _ = accumulate.gradients(loss, WEIGHT, jax.tree.map(jnp.asarray, nothing), 2)
    assert float(value) == 0.0
    assert_close(grads, jax.tree.map(np.zeros_like, WEIGHT), 0.0)
