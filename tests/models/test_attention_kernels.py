"""Splash attention in Pallas's interpret mode against plain attention: values, gradients, padding, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.models import attention_kernels as kernels
from igpo_jax.models.attention import attention, per_device
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

SPLASH = functools.partial(kernels.splash, name="context", interpret=True)
LENGTHS = np.array([140, 77, 128, 3], np.int32)


@pytest.fixture(scope="module")
def inputs():
    """q, k, v of 4 rows of 140 positions, 4 query heads and 2 key heads."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((4, 140, heads, 128)), jnp.float32) for heads in (4, 2, 2))


def _value_and_gradients(function, valid):
    def loss(*qkv):
        out = function(*qkv, valid)
        return (out**2).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def _assert_close(got, expected):
    gradients, out = expected
    np.testing.assert_allclose(got[1], out, rtol=0, atol=1e-5)
    for one, other in zip(got[0], gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


@pytest.fixture(scope="module")
def expected(inputs):
    """Plain attention's gradients and output with padded rows."""
    return _value_and_gradients(functools.partial(attention, implementation="xla"), LENGTHS)(*inputs)


def test_splash_equals_plain_attention_also_in_its_gradients_and_padded_rows(inputs, expected):
    _assert_close(_value_and_gradients(SPLASH, LENGTHS)(*inputs), expected)


def test_splash_takes_any_mask(inputs):
    q, k, v = (x[:2, :40] for x in inputs)
    valid = np.random.default_rng(1).random((2, 40)) < 0.5
    np.testing.assert_allclose(SPLASH(q, k, v, valid), attention(q, k, v, valid, "xla"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(SPLASH(q, k, v, None), attention(q, k, v, None, "xla"), rtol=0, atol=1e-5)


def test_masked_keys_have_no_effect_at_all(inputs):
    q, k, v = (x[:1, :40] for x in inputs)
    count = np.array([30], np.int32)
    moved = SPLASH(q, k.at[:, 30:].set(99), v.at[:, 30:].set(-9), count)
    np.testing.assert_array_equal(SPLASH(q, k, v, count), moved)


def test_each_device_of_a_mesh_runs_the_kernel_on_its_rows_and_heads(inputs, expected):
    mesh = make_mesh(MeshSettings(2, 2, 2))
    heads = jax.P(("data", "fsdp"), None, "tensor", None)
    with jax.set_mesh(mesh):
        qkv = jax.device_put(inputs, jax.NamedSharding(mesh, heads))
        lengths = jax.device_put(LENGTHS, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
        got = _value_and_gradients(lambda *args: per_device(SPLASH)(*args), lengths)(*qkv)
        text = jax.jit(lambda *args: per_device(SPLASH)(*args)).lower(*qkv, lengths).compile().as_text()
    assert jax.typeof(got[1]).sharding.spec == heads
    assert "all-gather" not in text and "all-to-all" not in text
    _assert_close(got, expected)


@pytest.mark.parametrize(("length", "block"), [(128, 128), (512, 512), (640, 128), (768, 384), (1024, 512)])
def test_blocks_divide_the_length(length, block):
    assert kernels._block(length) == block


def _saved(function, inputs):
    """Shapes that a checkpoint which saves "context" keeps of ``function`` besides its arguments."""
    policy = jax.checkpoint_policies.save_only_these_names("context")
    kept = jax.checkpoint(lambda *qkv: (function(*qkv, LENGTHS) ** 2).sum(), policy=policy)
    _, backward = jax.vjp(kept, *inputs)
    given = {x.shape for x in inputs}
    return {leaf.shape for leaf in jax.tree.leaves(backward) if leaf.ndim > 2} - given


def test_a_policy_that_saves_the_context_saves_what_the_backward_kernels_need(inputs):
    # The output and the log-normalisers, so that the forward kernel does not run again; no scores.
    saved = _saved(SPLASH, inputs)
    assert (4, 4, 256, 128) in saved
    assert not any(shape[-2:] in ((140, 140), (256, 256)) for shape in saved)


def test_what_is_missing_for_cudnn_is_said_in_one_sentence():
    why = kernels.obstacle("cudnn", ("gpu", "NVIDIA H100 80GB HBM3"), "bfloat16", 100)
    assert why is not None and why.endswith("the dtype bfloat16 and heads 100 wide")
    assert kernels.obstacle("cudnn", ("gpu", "NVIDIA H200"), "bfloat16", 128) is None
    assert kernels.obstacle("xla", ("cpu", "cpu"), "float32", 8) is None
