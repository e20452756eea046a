"""One device and eight virtual ones give the same logits and gradients, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.models import llada, lora
from igpo_jax.models.lora import LoraSettings
from igpo_jax.models.params import linear_shapes
from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
SETTINGS = lora.LoraSettings(rank=8, alpha=8.0)


def _batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 13, (8, 1))
    return {
        "tokens": rng.integers(0, 40, (8, 12)).astype(np.int32),
        "positions": np.tile(rng.permutation(12).astype(np.int32), (8, 1)),
        "valid": np.arange(12)[None] < lengths,
    }


def _logits(policy, model, batch):
    hidden = llada.forward(policy, model, batch["tokens"], positions=batch["positions"], valid=batch["valid"])
    return llada.head_logits(policy, model, hidden)


def _loss(policy, model, batch):
    logits = _logits(policy, model, batch)
    return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2), logits


GRAD = jax.jit(jax.grad(_loss, has_aux=True), static_argnums=1)


def _adapted(model, policy):
    fresh = jax.jit(lora.init_adapters, static_argnums=(1, 2))(jax.random.key(1), SETTINGS, model.config)
    moved = jax.tree.map(lambda leaf: leaf + 0.02, fresh.layers)
    return llada.Policy(policy.params, lora.Adapters(layers=moved, scale=fresh.scale))


def _place(policy, model, mesh):
    adapters = None if policy.adapters is None else lora.adapter_shardings(SETTINGS, model.config, mesh)
    return jax.device_put(policy, llada.Policy(llada.shardings(model.config, mesh), adapters))


def _assert_equal_on(meshes, model, policy):
    batch = _batch()
    expected_grads, expected_logits = GRAD(policy, model, batch)
    for shape in meshes:
        mesh = make_mesh(MeshSettings(*shape))
        with jax.set_mesh(mesh):
            placed = _place(policy, model, mesh)
            grads, logits = GRAD(placed, model, sharding.shard_batch(batch, mesh))
        assert jax.typeof(logits).sharding.spec == jax.P(("data", "fsdp"), None, None)
        np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=2e-5)
        for got, expected, weight in zip(*map(jax.tree.leaves, (grads, expected_grads, placed)), strict=True):
            assert got.sharding.is_equivalent_to(weight.sharding, got.ndim)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_plain(make_model):
    _assert_equal_on(MESHES[2:], *make_model())


def test_grouped_heads_biases_and_adapters(make_model, with_compute):
    model, policy = make_model(n_kv_heads=2, include_bias=True, bias_for_layer_norm=True)
    _assert_equal_on(MESHES, with_compute(model, remat="qkv_context"), _adapted(model, policy))


def test_tied_head(make_model):
    _assert_equal_on(MESHES[2:], *make_model(weight_tying=True))


def test_merging_keeps_the_layout(make_model):
    model, policy = make_model()
    adapted = _adapted(model, policy)
    mesh = make_mesh(MeshSettings(2, 2, 2))
    with jax.set_mesh(mesh):
        placed = _place(adapted, model, mesh)
        merged = jax.jit(lora.merge)(placed.params, placed.adapters)
    expected = lora.merge(adapted.params, adapted.adapters)
    for got, value, weight in zip(*map(jax.tree.leaves, (merged, expected, placed.params)), strict=True):
        assert got.sharding.is_equivalent_to(weight.sharding, got.ndim)
        np.testing.assert_allclose(got, value, rtol=0, atol=1e-6)


def test_gradients_over_scanned_micro_batches(make_model):
    model, policy = make_model()
    batch = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[::-1]]), _batch())

    def accumulated(policy, batch):
        def step(total, part):
            return jax.tree.map(jnp.add, total, GRAD(policy, model, part)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, policy)
        return jax.lax.scan(step, zeros, sharding.micro_batches(batch, 2))[0]

    expected, _ = GRAD(policy, model, batch)
    mesh = make_mesh(MeshSettings(2, 2, 2))
    with jax.set_mesh(mesh):
        got = jax.jit(accumulated)(_place(policy, model, mesh), sharding.shard_batch(batch, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 2, b, rtol=1e-4, atol=1e-6), got, expected)


def test_weights_are_gathered_inside_the_layer_loop_in_the_compute_dtype(make_model, with_compute):
    model, policy = make_model()
    low = with_compute(model, dtype="bfloat16")
    mesh = make_mesh(MeshSettings(1, 8, 1))
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(lambda policy, rows: llada.forward(policy, low, rows))(
            _place(policy, model, mesh), sharding.shard_batch(_batch()["tokens"], mesh)
        )
    (scan,) = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    gathered = [eqn.outvars[0].aval for eqn in scan.params["jaxpr"].jaxpr.eqns if eqn.primitive.name == "reshard"]
    assert sorted(aval.shape for aval in gathered if aval.ndim == 2) == [(32, 32)] * 4 + [(32, 48)] * 2 + [(48, 32)]
    assert {aval.dtype for aval in gathered} == {jnp.dtype("bfloat16")}
    outside = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "reshard"]
    assert all(eqn.outvars[0].aval.shape[0] != model.config.n_layers for eqn in outside)


def test_no_adapter_is_whole_on_a_device():
    """Adapters and their moments are split over everything that shares the model, on both sides of every layer."""
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
    shardings = lora.adapter_shardings(LoraSettings(rank=4), llada.ModelConfig(), mesh)
    for name, pair in shardings.layers.items():
        _, _, axis_in, axis_out = linear_shapes(llada.ModelConfig())[name]
        for matrix, axis, dimension in (("a", axis_in, 1), ("b", axis_out, 2)):
            held = pair[matrix].spec[dimension]
            assert held == ("fsdp" if axis == "embed" else ("tensor", "fsdp")), f"{name}/{matrix}"
