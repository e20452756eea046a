import dataclasses

import jax
import jax.numpy as jnp
import pytest

from igpo_jax.models import flops, llada
from igpo_jax.models.lora import LoraSettings, init_adapters
from igpo_jax.models.params import param_table

#: One layer, so that XLA, which counts a loop's body once, counts all of it; wide enough for matrices to dominate.
CONFIG = llada.ModelConfig(
    d_model=128,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    mlp_hidden_size=384,
    vocab_size=500,
    embedding_size=512,
    max_sequence_length=64,
    mask_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
ROWS, LENGTH, HEAD = 4, 64, 16
LORA = LoraSettings(rank=8)


def test_hand_count():
    block = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 384
    row = 64 * 2 * block + 4 * 64 * 64 * 128 + 16 * 2 * 128 * 512
    assert flops.forward_flops(CONFIG, ROWS, LENGTH, HEAD) == ROWS * row
    assert flops.update_flops(CONFIG, ROWS, LENGTH, HEAD) == 3 * ROWS * row


def test_llada_8b_forward_is_15_gflop_a_token():
    """2 x 6.979 G in the layers, 1.04 G in the head, 4 x 512 x 4,096 x 32 in attention."""
    per_token = flops.forward_flops(llada.ModelConfig(), 1, 512, 512) / 512
    norms = 32 * 2 * 4096 + 4096
    layers = 8_015_581_184 - 2 * 126_464 * 4096 - norms
    assert per_token == 2 * layers + 2 * 126_464 * 4096 + 4 * 512 * 4096 * 32


def test_lora_saves_the_weight_gradients_of_frozen_matrices():
    full = flops.update_flops(CONFIG, ROWS, LENGTH, HEAD)
    adapters = flops.forward_flops(CONFIG, ROWS, LENGTH, HEAD, LORA) - flops.forward_flops(CONFIG, ROWS, LENGTH, HEAD)
    shapes = [128 + 128, 128 + 64, 128 + 64, 128 + 128, 128 + 384, 128 + 384, 384 + 128]
    assert adapters == ROWS * LENGTH * 2 * 8 * sum(shapes)
    attention = ROWS * 4 * LENGTH * LENGTH * 128
    frozen = flops.forward_flops(CONFIG, ROWS, LENGTH, HEAD) - attention
    assert flops.update_flops(CONFIG, ROWS, LENGTH, HEAD, LORA) == full - frozen + 3 * adapters
    assert flops.update_flops(CONFIG, ROWS, LENGTH, HEAD, LoraSettings()) == full


def compiled_flops(function, *args) -> float:
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return float(cost["flops"])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_xla_counts_the_same(lora):
    """To 10%: XLA adds norms, rotations, softmax and sums."""
    model = llada.Model(CONFIG)
    params = llada.abstract(CONFIG)
    trained = params if lora is None else jax.eval_shape(lambda: init_adapters(jax.random.key(0), lora, CONFIG))
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

    def loss(trained, params, tokens):
        policy = llada.Policy(trained) if lora is None else llada.Policy(params, trained)
        hidden = llada.forward(policy, model, tokens)
        return jnp.sum(llada.head_logits(policy, model, hidden[:, :HEAD]))

    forward = compiled_flops(loss, trained, params, tokens)
    assert forward == pytest.approx(flops.forward_flops(CONFIG, ROWS, LENGTH, HEAD, lora), rel=0.1)
    if lora is None:
        both = compiled_flops(jax.grad(loss), trained, params, tokens)
        assert both == pytest.approx(flops.update_flops(CONFIG, ROWS, LENGTH, HEAD), rel=0.1)


def test_more_layers_cost_in_proportion():
    one, three = (
        flops.forward_flops(dataclasses.replace(CONFIG, n_layers=layers), ROWS, LENGTH, 0) for layers in (1, 3)
    )
    assert three == 3 * one
    assert param_table(CONFIG)["blocks"]["q_proj"]["weight"].shape == (1, 128, 128)
