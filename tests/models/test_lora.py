import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import llada, lora
from igpo_jax.models.lora import ALL_TARGETS, OFFICIAL_TARGETS, Adapters, LoraSettings

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)


def _adapters(model, settings, trained):
    """Fresh adapters, or ones whose ``b`` has moved away from zero."""
    adapters = lora.init_adapters(jax.random.key(3), settings, model.config)
    if not trained:
        return adapters
    rng = np.random.default_rng(5)
    moved = jax.tree.map(lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape).astype(np.float32), adapters.layers)
    return Adapters(layers=moved, scale=adapters.scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_zero_is_the_base_bit_for_bit(make_model, with_compute, run_logits, dtype):
    model, policy = make_model(n_kv_heads=2, include_bias=True)
    model = with_compute(model, dtype=dtype)
    adapted = llada.Policy(policy.params, _adapters(model, LoraSettings(rank=4), trained=False))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(adapted.adapters))
    np.testing.assert_array_equal(run_logits(adapted, model, TOKENS), run_logits(policy, model, TOKENS))


@pytest.mark.parametrize("targets", [("attn_out",), ("ff_proj", "ff_out"), OFFICIAL_TARGETS, ALL_TARGETS])
def test_merged_equals_unmerged(make_model, run_logits, targets):
    model, policy = make_model(n_kv_heads=2)
    adapters = _adapters(model, LoraSettings(rank=3, alpha=2.0, targets=targets), trained=True)
    assert set(adapters.layers) == set(targets)
    beside = run_logits(llada.Policy(policy.params, adapters), model, TOKENS)
    merged = run_logits(llada.Policy(lora.merge(policy.params, adapters)), model, TOKENS)
    assert np.abs(beside - run_logits(policy, model, TOKENS)).max() > 1e-2
    np.testing.assert_allclose(beside, merged, rtol=0, atol=1e-4)


def test_merge_is_the_formula_and_leaves_the_rest(make_model):
    model, policy = make_model()
    adapters = _adapters(model, LoraSettings(rank=2, alpha=6.0, targets=("ff_proj",)), trained=True)
    merged = lora.merge(policy.params, adapters)
    pair = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), adapters.layers["ff_proj"])
    expected = np.asarray(policy.params["blocks"]["ff_proj"]["weight"]) + 3.0 * pair["a"] @ pair["b"]
    np.testing.assert_allclose(merged["blocks"]["ff_proj"]["weight"], expected, rtol=0, atol=1e-6)
    assert merged["blocks"]["up_proj"]["weight"] is policy.params["blocks"]["up_proj"]["weight"]
    assert merged["wte"] is policy.params["wte"]


def test_merge_keeps_the_dtype(make_model):
    model, policy = make_model()
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), policy.params)
    merged = lora.merge(low, _adapters(model, LoraSettings(rank=2), trained=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_adapters_are_stacked_over_layers(make_model):
    model, _ = make_model(n_kv_heads=2)
    adapters = _adapters(model, LoraSettings(rank=4, alpha=8.0), trained=False)
    assert adapters.scale == 2.0
    shapes = jax.tree.map(jnp.shape, adapters.layers)
    assert shapes["k_proj"] == {"a": (2, 32, 4), "b": (2, 4, 16)}
    assert shapes["ff_out"] == {"a": (2, 48, 4), "b": (2, 4, 32)}
    assert not any(np.asarray(pair["b"]).any() for pair in adapters.layers.values())


def test_only_the_adapters_get_gradients(make_model):
    model, policy = make_model()
    adapters = _adapters(model, LoraSettings(rank=4), trained=True)

    def loss(adapters):
        policy_ = llada.Policy(policy.params, adapters)
        return jnp.mean(llada.head_logits(policy_, model, llada.forward(policy_, model, TOKENS)) ** 2)

    grads = jax.jit(jax.grad(loss))(adapters)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("*_proj",), ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj")),
        (("[qkv]_proj", "attn_out"), ("q_proj", "k_proj", "v_proj", "attn_out")),
        (("ff_*", "ff_out"), ("ff_proj", "ff_out")),
        (("*",), ALL_TARGETS),
        (("up_proj", "v_proj", "q_proj", "k_proj"), OFFICIAL_TARGETS),
    ],
)
def test_selectors(targets, layers):
    assert LoraSettings(rank=1, targets=targets).layers == layers


@pytest.mark.parametrize("target", ["o_proj", "gate_proj", "down_*", "lm_head"])
def test_selector_without_a_match_names_the_layers(target):
    with pytest.raises(UserError) as error:
        LoraSettings(rank=1, targets=("q_proj", target))
    assert f"'{target}' matches no layer" in str(error.value)
    assert all(name in str(error.value) for name in ALL_TARGETS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rank": -1}, r"lora.rank is -1"), ({"alpha": 0.0}, r"lora.alpha is 0"), ({"targets": ()}, r"targets is empty")],
)
def test_impossible_settings(fields, message):
    with pytest.raises(UserError, match=message):
        LoraSettings(**fields)


def test_rank_zero_has_no_adapters(make_model):
    with pytest.raises(UserError, match=r"lora.rank is 0"):
        lora.init_adapters(jax.random.key(0), LoraSettings(), make_model()[0].config)
