"""How the network is computed: precision, rematerialisation, compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.models import llada
from igpo_jax.models.config import REMAT

TOKENS = np.random.default_rng(0).integers(0, 40, (3, 10)).astype(np.int32)


def _loss(policy, model, tokens):
    return jnp.mean(jax.nn.logsumexp(llada.head_logits(policy, model, llada.forward(policy, model, tokens)), -1) ** 2)


@pytest.fixture(scope="module")
def remat_results(make_model, with_compute):
    """Gradients, and bytes of temporaries, of one model under every rematerialisation policy."""
    model, policy = make_model(n_layers=6, n_kv_heads=2, include_bias=True)
    tokens = np.random.default_rng(0).integers(0, 40, (8, 48)).astype(np.int32)
    results = {}
    for remat in REMAT:
        grad = jax.jit(jax.grad(_loss), static_argnums=1)
        compiled = grad.lower(policy, with_compute(model, remat=remat), tokens).compile()
        results[remat] = compiled(policy, tokens), compiled.memory_analysis().temp_size_in_bytes
    return results


@pytest.mark.parametrize("remat", REMAT[1:])
def test_remat_policies_give_the_same_gradients(remat_results, remat):
    expected, got = remat_results["none"][0], remat_results[remat][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected, got)


def test_remat_policies_save_memory_in_their_order(remat_results):
    sizes = [remat_results[remat][1] for remat in ("full", "context", "qkv_context", "none")]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


def test_equal_models_compile_once(make_model):
    model, policy = make_model()
    compiled = jax.jit(llada.forward, static_argnums=1)
    for _ in range(3):
        again = llada.Model(llada.ModelConfig(**model.config.__dict__), llada.Compute())
        compiled(policy, again, TOKENS)
    assert compiled._cache_size() == 1


def test_layers_are_compiled_once_however_many_there_are(make_model):
    def size(layers):
        model, policy = make_model(n_layers=layers)
        return len(jax.jit(llada.forward, static_argnums=1).lower(policy, model, TOKENS).as_text().splitlines())

    assert size(2) == size(7)


def _products(jaxpr):
    """Every matrix product in a jaxpr, those of nested programs included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _products(getattr(inner, "jaxpr", inner))


def test_float32_products_ask_for_float32_and_bfloat16_ones_stay_bfloat16(make_model, with_compute):
    model, policy = make_model()

    def products(dtype):
        one = with_compute(model, dtype=dtype)
        return list(_products(jax.make_jaxpr(lambda policy: _loss(policy, one, TOKENS))(policy).jaxpr))

    exact, low = products("float32"), products("bfloat16")
    assert len(exact) == len(low) == 10
    highest = jax.lax.Precision.HIGHEST
    assert {eqn.params["precision"] for eqn in exact} == {(highest, highest)}
    assert {var.aval.dtype for eqn in low for var in eqn.invars} == {jnp.dtype("bfloat16")}
    assert low[-1].outvars[0].aval.dtype == jnp.float32


def test_cast_makes_the_compute_copy_once(make_model, with_compute):
    model, policy = make_model()
    low = with_compute(model, dtype="bfloat16")
    copy = llada.cast(policy, low)
    assert {leaf.dtype for leaf in jax.tree.leaves(copy)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(
        *(jax.jit(llada.forward, static_argnums=1)(one, low, TOKENS).astype(jnp.float32) for one in (policy, copy))
    )


def test_dtypes_of_results(make_model, with_compute):
    model, policy = make_model()
    low = with_compute(model, dtype="bfloat16")
    hidden = jax.jit(llada.forward, static_argnums=1)(policy, low, TOKENS)
    assert hidden.dtype == jnp.bfloat16
    assert llada.head_logits(policy, low, hidden).dtype == jnp.float32
    grads = jax.jit(jax.grad(_loss), static_argnums=1)(policy, low, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
