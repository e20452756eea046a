import subprocess
import sys

import jax
import numpy as np
from flax import nnx

from igpo_jax.models import llada, lora
from igpo_jax.models.flax_adapter import LladaModule

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)


def _policies(make_model):
    model, policy = make_model(include_bias=True)
    adapters = lora.init_adapters(jax.random.key(0), lora.LoraSettings(rank=2), model.config)
    return model, (policy, llada.Policy(policy.params, adapters))


def test_round_trip_without_a_copy(make_model):
    model, policies = _policies(make_model)
    for policy in policies:
        back = LladaModule(policy, model).policy()
        assert jax.tree.structure(back) == jax.tree.structure(policy)
        assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(policy), strict=True))


def test_round_trip_through_split_and_merge(make_model):
    model, policies = _policies(make_model)
    for policy in policies:
        graph, state = nnx.split(LladaModule(policy, model))
        jax.tree.map(np.testing.assert_array_equal, nnx.merge(graph, state).policy(), policy)


def test_logits_and_gradients(make_model, run_logits):
    model, (_, policy) = _policies(make_model)
    module = LladaModule(policy, model)
    valid = np.arange(9)[None] < np.array([[9], [4]])
    expected = run_logits(policy, model, TOKENS, valid=valid)
    got = nnx.jit(lambda module: module(TOKENS, valid=valid))(module)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    grads = nnx.jit(nnx.grad(lambda module: (module(TOKENS) ** 2).mean()))(module)
    assert np.asarray(nnx.to_pure_dict(grads)["params"]["blocks"]["q_proj"]["weight"]).any()


def test_adapters_can_be_selected(make_model):
    model, (_, policy) = _policies(make_model)
    state = nnx.to_pure_dict(nnx.state(LladaModule(policy, model), nnx.LoRAParam))
    assert set(state) == {"adapters"}


def test_the_core_does_not_import_nnx():
    program = (
        "import sys, igpo_jax.models.llada, igpo_jax.models.lora, igpo_jax.parallel.mesh, convert.hf; "
        "print([name for name in sys.modules if name.startswith('flax.nnx')])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
