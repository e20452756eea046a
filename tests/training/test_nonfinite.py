"""An update whose loss or gradient is not finite changes no bit of parameters and optimizer state, and is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.rl.objectives import LossSums
from igpo_jax.training import optimizers
from igpo_jax.training import sft as sft_step
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.sft import SftSettings
from igpo_jax.training.state import TrainState
from igpo_jax.training.update import descend
from tests.training import tiny

SETTINGS = OptimizerSettings(learning_rate=0.1, schedule="linear", warmup_steps=2)


def toy(micro_batches=1):
    """(state, update) of a weight per column; a batch's first column is what it multiplies the loss with."""
    optimizer, schedule = optimizers.make_optimizer(SETTINGS, 10), optimizers.make_schedule(SETTINGS, 10)
    trainable = {"w": jnp.asarray([1.0, -2.0])}

    def loss(policy, part):
        # At 0 the root is finite and its gradient is not.
        value = jnp.sum(part[:, 0] * (policy.params["w"] ** 2).sum()) + jnp.sum(
            jnp.sqrt(part[:, 1] * policy.params["w"][0])
        )
        return LossSums(numerator=value, denominator=jnp.float32(part.shape[0]), metrics={})

    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable), None)
    return state, jax.jit(lambda state, batch: descend(state, loss, batch, optimizer, schedule, micro_batches))


GOOD = np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)
BAD = {
    "a loss that is NaN": np.array([[1.0, 1.0], [np.nan, 1.0]], np.float32),
    "an infinite loss": np.array([[1.0, 1.0], [np.inf, 1.0]], np.float32),
    "an infinite gradient of a finite loss": np.array([[1.0, 1.0], [1.0, 0.0]], np.float32),
    "a gradient too large to square": np.array([[1.0, 1.0], [1e30, 1.0]], np.float32),
}


def host(state):
    return jax.tree.map(np.asarray, (state.trainable, state.opt_state))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_it_is_skipped_and_counted(bad, micro_batches):
    state, update = toy(micro_batches)
    state, first = update(state, GOOD)
    before = host(state)
    for count in (1, 2):
        state, metrics = update(state, bad)
        assert (int(metrics["skipped_updates"]), int(metrics["skipped_in_a_row"])) == (count, count)
        assert not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"])
    for mine, yours in zip(jax.tree.leaves(host(state)), jax.tree.leaves(before), strict=True):
        assert mine.tobytes() == yours.tobytes()
    assert int(state.step) == 3, "data and noise go on"
    assert int(first["skipped_updates"]) == 0


def test_training_goes_on_as_if_the_bad_batch_had_not_been():
    mine, update = toy()
    for batch in (GOOD, *BAD.values(), GOOD):
        mine, metrics = update(mine, batch)
    yours, _ = toy()
    for batch in (GOOD, GOOD):
        yours, expected = update(yours, batch)
    for one, other in zip(jax.tree.leaves(host(mine)), jax.tree.leaves(host(yours)), strict=True):
        assert one.tobytes() == other.tobytes()
    assert metrics["learning_rate"] == expected["learning_rate"], "the schedule counts the updates that were made"
    assert (int(metrics["skipped_updates"]), int(metrics["skipped_in_a_row"])) == (4, 0)


@pytest.mark.parametrize("lora", [tiny.FULL, tiny.LORA], ids=["full", "lora"])
def test_a_nan_in_a_sharded_model(lora):
    mesh = tiny.mesh_of(tiny.MESHES["2x2x2"])
    params = tiny.host_params()
    params["ff_out"]["weight"] = params["ff_out"]["weight"].copy()
    params["ff_out"]["weight"][0, 0] = np.nan
    with jax.set_mesh(mesh):
        state, _, optimizer, schedule = tiny.make_state(mesh, params, lora)
        before = jax.tree.map(np.array, (state.trainable, state.opt_state))
        update = sft_step.make_sft_step(
            llada.Model(tiny.CONFIG), dataclasses.replace(SftSettings(), lora=lora), optimizer, schedule
        )
        state, metrics = update(state, sharding.shard_batch(tiny.sft_batch(), mesh), jax.random.key(0))
        after = jax.tree.map(np.array, (state.trainable, state.opt_state))
    assert int(metrics["skipped_updates"]) == 1
    for mine, yours in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert mine.tobytes() == yours.tobytes()
