"""The reference's own numbers: logits, hidden states and the parts of every block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import hf
from igpo_jax.models import block, llada
from igpo_jax.models.attention import attention

CASES = ["rand_b2_t16", "masked_b3_t33", "long_b1_t96", "single_b1_t1", "allmask_b1_t20", "padded_b3_t24"]


@pytest.mark.parametrize("case", CASES)
def test_logits(golden, tiny, run_logits, case):
    model, policy = tiny
    arrays = golden("forward")[case]
    mask = arrays.get("attention_mask")
    logits = run_logits(policy, model, arrays["input_ids"], valid=None if mask is None else mask.astype(bool))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-4)


def test_rounded_weights_in_float32(golden, golden_dir, run_logits):
    arrays = golden("forward")["bf16_weights_f32_compute"]
    config, params = hf.load_checkpoint(golden_dir / "tiny_llada_sharded")
    logits = run_logits(llada.Policy(params), llada.Model(config), arrays["input_ids"])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_compute(golden, golden_dir, run_logits, dtype):
    arrays = golden("forward")["bf16_weights_bf16_compute"]
    config, params = hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype)
    model = llada.Model(config, llada.Compute(dtype="bfloat16"))
    logits = run_logits(llada.Policy(params), model, arrays["input_ids"])
    assert np.sqrt(np.mean((logits - arrays["logits"]) ** 2)) < 0.1


def _walk(policy, model, tokens):
    """The forward pass layer by layer outside the scan, yielding (input, layer) and then the last output."""
    x = policy.params["wte"]["weight"][tokens]
    rotation = block.rotary_table(jnp.arange(tokens.shape[1])[None], model.config)
    for index in range(model.config.n_layers):
        weights = jax.tree.map(lambda leaf, index=index: leaf[index], policy.params["blocks"])
        layer = block.Layer(model, weights, {}, 0.0)
        yield x, layer, rotation
        x = block.block(layer, x, rotation, None)
    yield x, None, rotation


def test_hidden_states(golden, tiny):
    model, policy = tiny
    arrays = golden("forward")["rand_b2_t16"]
    states = [x for x, _, _ in _walk(policy, model, arrays["input_ids"])]
    final = llada.forward(policy, model, arrays["input_ids"])
    np.testing.assert_allclose([*states[:-1], final], arrays["hidden_states"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(states[-1], arrays["last_block_out"], rtol=0, atol=1e-4)


def test_block_parts(golden, tiny):
    model, policy = tiny
    arrays = golden("forward")["rand_b2_t16"]
    for index, (x, layer, rotation) in enumerate(_walk(policy, model, arrays["input_ids"])):
        if layer is not None:
            for name, value in _parts(x, layer, rotation).items():
                np.testing.assert_allclose(
                    value, arrays[f"block{index}/{name}"], rtol=0, atol=1e-4, err_msg=f"block{index}/{name}"
                )


def _parts(x, layer, rotation):
    parts = {"attn_norm": layer.norm("attn_norm", x)}
    parts |= {name: layer.linear(name, parts["attn_norm"]) for name in ("q_proj", "k_proj", "v_proj")}
    q, k, v = (parts[name].reshape(*x.shape[:2], -1, layer.model.config.head_dim) for name in list(parts)[1:])
    q, k = block.rotate(q, rotation), block.rotate(k, rotation)
    parts["q_rope"], parts["k_rope"] = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
    parts["attn_heads_out"] = attention(q, k, v).reshape(x.shape)
    parts["attn_out"] = layer.linear("attn_out", parts["attn_heads_out"])
    parts["ff_norm"] = layer.norm("ff_norm", x + parts["attn_out"])
    parts["ff_proj"], parts["up_proj"] = (layer.linear(name, parts["ff_norm"]) for name in ("ff_proj", "up_proj"))
    parts["act"] = jax.nn.silu(parts["ff_proj"])
    parts["ff_out"] = layer.linear("ff_out", parts["act"] * parts["up_proj"])
    return parts
