import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import attention as attention_lib
from igpo_jax.models.attention import attention


def _inputs(kv_heads=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 7, heads, 8)).astype(np.float32) for heads in (4, kv_heads, kv_heads))
    return tuple(jnp.asarray(part, dtype) for part in (q, k, v))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_library_function(kv_heads, masked):
    q, k, v = _inputs(kv_heads)
    valid = np.arange(7)[None] < np.array([[7], [3]]) if masked else None
    mask = None if valid is None else valid[:, None, None, :]
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_allclose(attention(q, k, v, valid), expected, rtol=0, atol=1e-5)


def test_gradients_equal_the_library_function():
    valid = np.arange(7)[None] < np.array([[7], [3]])

    def ours(*qkv):
        return (attention(*qkv, valid) ** 2).sum()

    def theirs(*qkv):
        return (jax.nn.dot_product_attention(*qkv, mask=valid[:, None, None, :]) ** 2).sum()

    for got, expected in zip(*(jax.grad(one, (0, 1, 2))(*_inputs()) for one in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_masked_keys_have_no_effect_at_all():
    q, k, v = _inputs()
    valid = np.arange(7)[None] < np.array([[4], [4]])
    np.testing.assert_array_equal(
        attention(q, k, v, valid), attention(q, k.at[:, 4:].set(99), v.at[:, 4:].set(-9), valid)
    )


def test_bfloat16_stays_close_and_keeps_its_dtype():
    low = attention(*_inputs(dtype=jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attention(*_inputs()), rtol=0, atol=0.05)


def test_large_scores_stay_finite():
    q, k, v = _inputs()
    assert np.isfinite(attention(1e4 * q, 1e4 * k, v)).all()


def test_the_first_keys_by_number_or_by_mask():
    q, k, v = _inputs()
    valid = np.arange(7)[None] < np.array([[7], [3]])
    by_number = attention(q, k, v, np.array([7, 3], np.int32))
    np.testing.assert_array_equal(by_number, attention(q, k, v, valid))


def test_auto_is_xla_on_a_cpu_and_says_so_once(caplog):
    attention_lib._choose.cache_clear()
    with caplog.at_level(logging.INFO, logger=attention_lib.__name__):
        np.testing.assert_array_equal(attention(*_inputs()), attention(*_inputs(), implementation="xla"))
        attention(*_inputs(), implementation="auto")
    assert [record.message for record in caplog.records] == ["attention: using the 'xla' implementation on cpu"]


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "name", "reason"),
    [
        (("gpu", "NVIDIA H100 80GB HBM3"), "bfloat16", 128, "cudnn", ""),
        (("gpu", "NVIDIA GH200 480GB"), "bfloat16", 64, "cudnn", ""),
        (("gpu", "NVIDIA H100 80GB HBM3"), "float32", 128, "xla", "the dtype float32"),
        (("gpu", "NVIDIA A100-SXM4-80GB"), "bfloat16", 128, "xla", "the devices are NVIDIA A100-SXM4-80GB"),
        (("tpu", "TPU v6 lite"), "bfloat16", 128, "splash", ""),
        (("tpu", "TPU v5 lite"), "bfloat16", 64, "xla", "heads 64 wide"),
    ],
)
def test_auto_takes_the_kernel_of_the_platform_or_says_why_not(caplog, device, dtype, head_dim, name, reason):
    attention_lib._choose.cache_clear()
    with caplog.at_level(logging.INFO, logger=attention_lib.__name__):
        assert attention_lib._choose(device, dtype, head_dim) == name
    (record,) = caplog.records
    assert f"using the '{name}' implementation on {device[1]}" in record.message
    assert reason in record.message and (": " in record.message) and (";" in record.message) == bool(reason)


def test_unknown_implementation():
    with pytest.raises(UserError, match=r"attention is 'xlaa', which is not a known choice \(did you mean 'xla'\?\)"):
        attention(*_inputs(), implementation="xlaa")


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_a_kernel_that_cannot_run_here_is_an_error(name):
    with pytest.raises(UserError, match=rf"attention: '{name}' attention needs .*, but the devices are cpu, .*"):
        attention(*_inputs(dtype=jnp.bfloat16), implementation=name)
