"""What the compilers for TPUs and H100s make of attention: the kernel's custom call, so that no fallback is silent."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from igpo_jax.diffusion import likelihood
from igpo_jax.models import llada
from igpo_jax.models.config import Compute
from tests.topologies import far_mesh

pytestmark = pytest.mark.aot

CONFIG = llada.ModelConfig(
    d_model=512,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=1024,
    vocab_size=2048,
    embedding_size=2048,
    mask_token_id=2047,
    eos_token_id=2046,
    pad_token_id=2046,
)


def custom_calls(name, shape, implementation="auto", remat="context", dtype="bfloat16"):
    """How often each kernel stands in the program of a gradient of log-probabilities; its layers are one loop."""
    mesh = far_mesh(name, shape)
    model = llada.Model(CONFIG, Compute(dtype=dtype, remat=remat, attention=implementation))

    def loss(params, *batch):
        return likelihood.score(llada.Policy(params), model, *batch, chunk=32).logp.sum()

    def rows(width, dtype):
        split = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None))
        return jax.ShapeDtypeStruct((8, width), dtype, sharding=split)

    with jax.set_mesh(mesh):
        params = llada.abstract(CONFIG, jnp.float32, mesh)
        batch = (rows(60, jnp.int32), rows(60, bool), rows(80, jnp.int32), rows(80, bool))
        compiled = jax.jit(jax.grad(loss)).lower(params, *batch).compile()
    found = re.findall(r'custom_call_target="([^"]*)"', compiled.as_text())
    return collections.Counter(call for call in found if call == "tpu_custom_call" or "fmha" in call)


@pytest.mark.parametrize(("name", "shape"), [("v5e:2x2", (1, 2, 2)), ("v5p:2x2x1", (2, 2, 1)), ("v6e:2x2", (4, 1, 1))])
def test_tpus_get_the_splash_kernel(name, shape):
    # Forward, and the two kernels of the backward pass; "context" keeps what they need.
    assert custom_calls(name, shape) == {"tpu_custom_call": 3}


def test_full_rematerialisation_runs_the_forward_kernel_twice():
    assert custom_calls("v5e:2x2", (4, 1, 1), remat="full") == {"tpu_custom_call": 4}


def test_h100s_get_cudnns_flash_attention():
    # The backward pass runs the forward kernel again: what cuDNN keeps for it has no name that a policy could save.
    expected = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 1}
    assert custom_calls("h100", (2, 2, 2)) == expected
    assert custom_calls("h100", (1, 1, 1), remat="none") == expected | {"__cudnn$fmhaSoftmax": 1}


@pytest.mark.parametrize("name", ["v5e:2x2", "h100"])
def test_plain_attention_and_float32_have_no_kernel(name):
    assert not custom_calls(name, (4, 1, 1), implementation="xla")
    assert not custom_calls(name, (4, 1, 1), dtype="float32")
