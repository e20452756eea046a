"""Losses, metrics and gradients of the released code, reproduced by the ``official`` objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.hf import load_checkpoint, params_to_hf
from igpo_jax.diffusion import likelihood
from igpo_jax.models import llada
from igpo_jax.rl.objectives import Objective, policy_loss
from tests.rl.loss_cases import make_batch

RL_CASES = ["loss_grpo", "loss_gspo", "loss_grpo_beta", "loss_gspo_beta", "loss_grpo_iter1", "loss_grpo_unfiltered"]
ROLLOUT_CASES = [f"rollout{moved}_loss_{level}" for moved in ("", "_moved") for level in ("grpo", "gspo")]

#: Our pair of sums -> the released code's metric. Its "clip ratio" counts tokens beyond a bound where the bound is NOT
#: in force (gradient flows), so it is ``outside`` less ``clip``.
BY_KIND = {
    "ratio": "{}_tokens_policy_ratio_mean",
    "loss": "loss_{}",
    "advantage": "advantages_{}_mean",
    "logp": "logprobs_{}_mean",
}


@pytest.fixture(scope="module")
def tiny(golden_dir):
    config, params = load_checkpoint(golden_dir / "tiny_llada", dtype="float32")
    return llada.Model(config), params


def objective_of(case, inputs) -> Objective:
    level = "sequence" if bool(case["use_gspo"]) else "token"
    bounds = {"clip_low": float(inputs["epsilon_low"]), "clip_high": float(inputs["epsilon_high"])}
    return dataclasses.replace(Objective.official(), ratio=level, kl_coef=float(case["beta"]), **bounds)


def rl_case(golden, name):
    everything = golden("rl")
    case, inputs, when = everything[name], everything["loss_inputs"], int(everything[name]["iteration"])
    kept = inputs["token_mask"][when]
    batch = make_batch(
        inputs["old_per_token_logps"][when],
        inputs["advantages"],
        kept=np.ones_like(kept) if name.endswith("unfiltered") else kept,
        ref=inputs["ref_per_token_logps"][when],
        hint=inputs["hint_mask"],
        # The released code computes this mask and does not use it in the loss.
        completion_mask=np.zeros_like(kept),
    )
    return case, batch, inputs["prompt_ids"], inputs["completion_ids"], objective_of(case, inputs)


def rollout_case(golden, name):
    everything = golden("rollout")
    case, inputs = everything[name], everything["rollout"]
    old = inputs["moved_old_per_token_logps" if "moved" in name else "old_per_token_logps"]
    batch = make_batch(
        old[0],
        inputs["advantages"],
        kept=inputs["token_mask"][0],
        ref=inputs["ref_per_token_logps"][0],
        hint=inputs["final_hint_mask"],
        completion_mask=inputs["completion_mask"] > 0,
    )
    level = "sequence" if name.endswith("gspo") else "token"
    objective = dataclasses.replace(Objective.official(), ratio=level, clip_high=0.28)
    return case, batch, inputs["prompt_ids"], inputs["final_completion"], objective


def check(case, batch, prompt, completion, objective, tiny):
    model, params = tiny

    def loss(params):
        policy = llada.Policy(params)
        valid, masked = jnp.ones(prompt.shape, bool), jnp.ones(completion.shape, bool)
        scores = likelihood.score(policy, model, prompt, valid, completion, masked)
        sums = policy_loss(scores, batch, objective)
        return sums.numerator / sums.denominator, sums

    (value, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert float(value) == pytest.approx(float(case["loss"]), abs=2e-5)
    check_metrics(case, {name: tuple(map(float, pair)) for name, pair in sums.metrics.items()})
    check_gradients(case, params_to_hf(jax.tree.map(np.asarray, grads), model.config))


def check_metrics(case, ours):
    mean = {name: numerator / denominator for name, (numerator, denominator) in ours.items()}
    expected = {
        "policy_ratio": mean["ratio"],
        "clip_ratio": mean["outside"] - mean["clip_low"] - mean["clip_high"],
        "num_inpainted_tokens_in_loss": ours["ratio_hint"][1],
        "num_generated_tokens_in_loss": ours["ratio_generated"][1],
    }
    entropy = [ours["entropy_hint_kept"], ours["entropy_generated"]]
    expected["entropy"] = sum(n for n, _ in entropy) / sum(d for _, d in entropy)
    if "metric:kl" in case:
        expected["kl"] = mean["kl"]
    for kind, name in (("hint", "inpainted"), ("generated", "generated")):
        for metric, official in BY_KIND.items():
            expected[official.format(kind if metric == "ratio" else name)] = mean[f"{metric}_{kind}"]
        expected[f"{kind}_tokens_clip_ratio"] = mean[f"outside_{kind}"] - mean[f"clip_{kind}"]
    assert {f"metric:{name}" for name in expected} == {name for name in case if name.startswith("metric:")}
    for name, value in expected.items():
        assert value == pytest.approx(float(case[f"metric:{name}"]), rel=2e-5, abs=2e-5), name


def check_gradients(case, grads):
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


@pytest.mark.parametrize("name", RL_CASES)
def test_recorded_losses(golden, tiny, name):
    check(*rl_case(golden, name), tiny)


@pytest.mark.parametrize("name", ROLLOUT_CASES)
def test_recorded_rollout_losses(golden, tiny, name):
    check(*rollout_case(golden, name), tiny)
