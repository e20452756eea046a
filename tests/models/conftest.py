"""The golden model, and LLaDA once more in plain numpy float64, written from its formulas head by head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import hf
from igpo_jax.models import llada
from igpo_jax.models.params import map_table


@pytest.fixture(scope="session")
def tiny(golden_dir):
    """The golden checkpoint as (Model, Policy), in float32."""
    config, params = hf.load_checkpoint(golden_dir / "tiny_llada")
    return llada.Model(config), llada.Policy(params)


@pytest.fixture(scope="session")
def run_logits():
    """Jitted logits of a whole row: (policy, model, tokens, positions=, valid=) -> (B, T, V)."""

    def logits(policy, model, tokens, positions=None, valid=None):
        return llada.head_logits(policy, model, llada.forward(policy, model, tokens, positions=positions, valid=valid))

    return jax.jit(logits, static_argnums=1)


@pytest.fixture(scope="session")
def make_model():
    """Builds (Model, Policy) with every weight random (norms and biases too); fields of ModelConfig by keyword."""

    def make(seed=0, **fields):
        base = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": 40}
        base |= {"embedding_size": 40, "max_sequence_length": 64, "mask_token_id": 39, "eos_token_id": 38}
        config = llada.ModelConfig(**(base | {"pad_token_id": 38} | fields))
        rng = np.random.default_rng(seed)

        def draw(_, spec):
            noise = rng.standard_normal(spec.shape)
            values = spec.std * noise if spec.init == "normal" else (spec.init == "ones") + 0.1 * noise
            return jnp.asarray(values, jnp.float32)

        return llada.Model(config), llada.Policy(map_table(draw, llada.param_table(config)))

    return make


@pytest.fixture(scope="session")
def numpy_logits():
    """Reference forward pass: (params, config, tokens (B, T), valid) -> logits (B, T, V) float64, loop by loop."""
    return _numpy_logits


def _numpy_logits(params, config, tokens, valid=None):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return np.stack([_row_logits(params, config, row, keys) for row, keys in zip(tokens, valid, strict=True)])


def _row_logits(params, config, row, keys):
    x = params["wte"]["weight"][row]
    for index in range(config.n_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        x = x + _apply(layer["attn_out"], _heads(layer, config, _norm(layer["attn_norm"], x, config), keys))
        h = _norm(layer["ff_norm"], x, config)
        gate = _apply(layer["ff_proj"], h)
        x = x + _apply(layer["ff_out"], gate / (1 + np.exp(-gate)) * _apply(layer["up_proj"], h))
    x = _norm(params["ln_f"], x, config)
    return x @ params["wte"]["weight"].T if config.weight_tying else _apply(params["ff_out"], x)


def _apply(linear, x):
    return x @ linear["weight"] + linear.get("bias", 0.0)


def _norm(norm, x, config):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * norm["weight"] + norm.get("bias", 0.0)


def _heads(layer, config, h, keys):
    width, shared = config.head_dim, config.n_heads // config.n_kv_heads
    q, k, v = (_apply(layer[name], h) for name in ("q_proj", "k_proj", "v_proj"))
    out = []
    for head in range(config.n_heads):
        mine = slice(head * width, (head + 1) * width)
        theirs = slice(head // shared * width, (head // shared + 1) * width)
        scores = _turn(q[:, mine], config) @ _turn(k[:, theirs], config).T / np.sqrt(width)
        scores[:, ~keys] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, theirs])
    return np.concatenate(out, -1)


def _turn(x, config):
    """Rotary positions as a complex product: the two halves are real and imaginary parts."""
    half = config.head_dim // 2
    angles = np.arange(len(x))[:, None] * config.rope_theta ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


@pytest.fixture(scope="session")
def with_compute():
    """Returns ``model`` with fields of its Compute replaced."""
    return lambda model, **fields: dataclasses.replace(model, compute=dataclasses.replace(model.compute, **fields))
