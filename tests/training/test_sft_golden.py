"""LLaDA's supervised loss and its gradients, as its guidelines write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.hf import load_checkpoint, params_to_hf
from igpo_jax.diffusion import masking
from igpo_jax.models import llada
from igpo_jax.training.sft import SftBatch, sft_sums


@pytest.fixture(scope="module")
def recorded(golden):
    cases = golden("sft")
    return cases["inputs"], cases["sft_guidelines"]


@pytest.fixture(scope="module")
def noised(recorded):
    """The recorded rows after the forward process, with the recorded times and uniforms."""
    inputs, _ = recorded
    maskable = np.arange(24) >= inputs["prompt_lengths"][:, None]
    return masking.apply_noise(
        inputs["input_ids"], inputs["t"], inputs["u"], maskable, int(inputs["mask_id"]), float(inputs["eps"])
    )


@pytest.fixture(scope="module")
def computed(golden_dir, recorded, noised):
    """Sums of each row, the loss, and gradients by the checkpoint's names."""
    config, params = load_checkpoint(golden_dir / "tiny_llada", dtype="float32")
    model = llada.Model(config)
    inputs, _ = recorded

    def row_sums(params, row):
        # Prompts and answers differ in length, so every row is a batch of its own.
        start = int(inputs["prompt_lengths"][row])
        tokens = inputs["input_ids"][row : row + 1]
        batch = SftBatch(tokens[:, :start], np.ones((1, start), bool), tokens[:, start:], np.array([row]))
        masked, probability = noised.masked[row : row + 1, start:], noised.probability[row : row + 1]
        return sft_sums(llada.Policy(params), model, batch, masked, probability, chunk=7)

    def loss(params):
        sums = [row_sums(params, row) for row in range(3)]
        total = jax.tree.map(lambda *parts: jnp.sum(jnp.stack(parts)), *sums)
        return total.numerator / total.denominator, sums

    (value, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return float(value), sums, params_to_hf(jax.tree.map(np.asarray, grads), config)


def test_forward_process(recorded, noised):
    inputs, case = recorded
    np.testing.assert_array_equal(noised.tokens, case["noisy"])
    np.testing.assert_array_equal(noised.masked, case["masked"])
    np.testing.assert_allclose(noised.probability, inputs["p_mask"][:, 0], rtol=1e-6)


def test_loss(recorded, computed):
    assert computed[0] == pytest.approx(float(recorded[1]["loss"]), abs=2e-5)


def test_sums_of_each_row(recorded, noised, computed):
    """The numerator is the row's sum of CE / p over its answer length; the denominator counts the row."""
    _, case = recorded
    counts = np.asarray(noised.masked).sum(axis=1)
    per_row = [part.sum() for part in np.split(case["token_loss"], np.cumsum(counts)[:-1])]
    for sums, total, length, count in zip(computed[1], per_row, case["answer_lengths"], counts, strict=True):
        assert float(sums.numerator) == pytest.approx(float(total) / int(length), abs=1e-4)
        assert float(sums.denominator) == 1.0
        assert float(sums.metrics["masked_cross_entropy"][1]) == count


def test_gradients(recorded, computed):
    _, case = recorded
    grads = computed[2]
    norms = {name: float(np.linalg.norm(np.asarray(grad, np.float64))) for name, grad in grads.items()}
    assert set(norms) == set(case["grad_names"])
    for name, norm in zip(case["grad_names"], case["grad_norms"], strict=True):
        assert norms[name] == pytest.approx(norm, rel=1e-4), name
    assert np.hypot.reduce(list(norms.values())) == pytest.approx(float(case["grad_global_norm"]), rel=1e-4)
    whole = [name for name in case if name.startswith("grad:")]
    assert len(whole) == 3
    for name in whole:
        difference = np.linalg.norm(np.asarray(grads[name.removeprefix("grad:")]) - case[name])
        assert difference <= 1e-4 * np.linalg.norm(case[name]), name
