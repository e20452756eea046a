"""Training states: what is trained, what is frozen, what the reference is, and where everything lies."""

import jax
import numpy as np
import pytest

from igpo_jax.models import llada, lora
from igpo_jax.training import optimizers, state
from tests.rl.rollout_cases import CONFIG, MODEL
from tests.training import tiny


@pytest.fixture(scope="module")
def params():
    return tiny.host_params()


@pytest.fixture(scope="module")
def mesh():
    return tiny.mesh_of(tiny.MESHES["2x2x2"])


def logits(policy):
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    return np.asarray(llada.head_logits(policy, MODEL, llada.forward(policy, MODEL, tokens)))


def test_full_fine_tuning_trains_a_copy(params, mesh):
    made, placed, _, _ = tiny.make_state(mesh, params)
    assert made.frozen is None and int(made.step) == 0
    tiny.assert_close(made.trainable, params, 0.0)
    for mine, yours in zip(jax.tree.leaves(made.trainable), jax.tree.leaves(placed), strict=True):
        assert mine.sharding == yours.sharding
        mine.delete()
    tiny.assert_close(placed, params, 0.0)


def test_moments_lie_where_their_parameters_lie(params, mesh):
    made, _, _, _ = tiny.make_state(mesh, params)
    moments = [s for s in jax.tree.leaves(made.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu")]
    assert len(moments) == 1
    for moment in (moments[0].mu, moments[0].nu):
        for one, weight in zip(jax.tree.leaves(moment), jax.tree.leaves(made.trainable), strict=True):
            assert one.sharding == weight.sharding and one.dtype == np.float32
            assert not np.asarray(one).any()
    assert len(made.trainable["blocks"]["q_proj"]["weight"].addressable_shards) == 8
    assert made.trainable["blocks"]["q_proj"]["weight"].addressable_shards[0].data.shape == (2, 16, 16)


def test_lora_trains_new_adapters_beside_the_base(params, mesh):
    optimizer = optimizers.make_optimizer(tiny.OPTIMIZER, 10)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, llada.shardings(CONFIG, mesh))
        made = state.create(placed, tiny.LORA, CONFIG, optimizer, jax.random.key(1), mesh)
    assert set(made.trainable.layers) == set(lora.ALL_TARGETS)
    tiny.assert_close(made.frozen, params, 0.0)
    assert sum(x.size for x in jax.tree.leaves(made.opt_state)) < 3 * sum(
        x.size for x in jax.tree.leaves(made.trainable)
    )
    fresh = jax.tree.map(np.asarray, state.policy_of(made.trainable, made.frozen))
    np.testing.assert_array_equal(logits(fresh), logits(llada.Policy(params)))


def test_policies_of_a_lora_state(params, mesh):
    made, *_ = tiny.make_state(mesh, params, tiny.LORA)
    host = jax.tree.map(np.asarray, made)
    adapted = logits(state.policy_of(host.trainable, host.frozen))
    base = logits(llada.Policy(params))
    assert np.abs(adapted - base).max() > 1e-2
    np.testing.assert_allclose(logits(llada.Policy(state.merged_params(host))), adapted, atol=1e-4)
    # The reference is the base, whatever is passed as the start.
    reference = state.reference_of(host, {"not": "used"})
    assert reference.adapters is None
    np.testing.assert_array_equal(logits(reference), base)


def test_policies_of_a_full_state(params, mesh):
    made, placed, _, _ = tiny.make_state(mesh, params)
    assert state.reference_of(made, placed).params is placed
    assert state.merged_params(made) is made.trainable
    assert state.policy_of(made.trainable, None).adapters is None
