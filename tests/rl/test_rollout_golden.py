"""One whole rollout of the released code: first round, hints, inpainting, replacement, advantages, scores, filter.

The recorded reference is another model, whose weights are not stored; its log-probs enter the recorded losses
(test_objectives_golden.py).
"""

import types

import jax
import numpy as np
import pytest

from convert.hf import load_checkpoint
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.rl import objectives, rollout
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.rollout import RewardSettings, RolloutSettings
from igpo_jax.training import rl as rl_step
from tests.rl.rollout_cases import IdTokenizer, RuleJudge, make_context, mesh_of, question

#: What the released code put first, its inpainted rows 4 and 2 in the order drawn, comes out in rising order here.
ORDER = [1, 0, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("rollout")["rollout"]


def words(row):
    return IdTokenizer().decode(row)


def asked_of(recorded):
    """The recorded prompt as a question; its trace is the recorded answer, its gold is the judge's business."""
    prompt = recorded["prompt_ids"][0]
    fields = vars(question(0)) | {
        "prompt_tokens": prompt,
        "prompt_mask": np.ones(len(prompt), bool),
        "trace_tokens": recorded["answer"],
        "gold": "right",
    }
    return rollout.Question(**fields)


def chosen_like_recorded(good, wanted):
    """The first outer step whose generator picks the rows that the released code's picked."""
    for step in range(1000):
        rng = np.random.default_rng([0, rollout._PURPOSE_REPLACE, step])
        if sorted(rng.choice(good, len(wanted), replace=False)) == wanted:
            return step
    raise AssertionError("no step picks these rows")


@pytest.fixture(scope="module")
def played(golden_dir, recorded):
    """The rollout collected and scored on two devices under the official settings."""
    config, params = load_checkpoint(golden_dir / "tiny_llada", dtype="float32")
    model, mesh = llada.Model(config), mesh_of(2)
    right = recorded["inpaint_correctness"] == 3.0
    answers = {words(row) for row in recorded["inpaint_completion"][right]}
    judge = RuleJudge(lambda gold, text: text in answers)
    settings = RolloutSettings(
        groups=1, group_size=6, rows_per_program=6, replace_fraction=1 / 3, replace_order="first"
    )
    sampler = Sampler.official(
        length=int(recorded["gen_length"]),
        steps=int(recorded["steps"]),
        block_length=int(recorded["block_length"]),
        temperature=0.0,
    )
    context = make_context(
        judge,
        settings,
        mesh=mesh,
        sampler=sampler,
        hints=HintSettings(placement="official"),
        rewards=RewardSettings(correct=3.0, format_weight=1.0),
        model=model,
    )
    formats = dict(zip(map(words, recorded["final_completion"]), recorded["rewards"][:, 0], strict=True))
    canvas = recorded["inpaint_first_input"][:, recorded["prompt_ids"].shape[1] :]
    canvas = np.where(canvas == config.mask_token_id, -1, canvas).astype(np.int32)
    step = chosen_like_recorded(np.flatnonzero(right), [2, 4])
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        # The seeds of the recorded hints are not stored; their placement has its own recorded cases.
        patch.setattr(rollout, "hint_canvases", lambda *_: (canvas, recorded["inpaint_ratios"], {}))
        patch.setattr(rollout, "format_terms", lambda text: {"stub": formats[text]})
        seen = spy_on_replace(patch)
        policy = jax.device_put(llada.Policy(params), llada.Policy(llada.shardings(config, mesh)))
        out = rollout.collect(policy, [asked_of(recorded)], step, context)
        batch, scores = scored(policy, model, out, mesh)
    return types.SimpleNamespace(out=out, batch=batch, scores=scores, canvas=canvas, right=right, **seen)


def spy_on_replace(patch):
    """Keeps both rounds as replacement sees them."""
    seen = {}
    real = rollout.replace

    def spied(first, second, *args):
        seen.update(first=first, second=second)
        return real(first, second, *args)

    patch.setattr(rollout, "replace", spied)
    return seen


def scored(policy, model, out, mesh):
    """The behaviour pass and the assembly of an update, in two parts as in training; the reference is the policy."""
    objective = objectives.Objective.official()
    device = sharding.shard_batch(out.batch, mesh)
    scores = rl_step.make_score(model, 16, 3)(policy, device, np.ones(out.batch.hint_mask.shape, bool))
    weight = objectives.kl_weight(out.batch.rewards, 6, objective)
    return rl_step.make_update_batch(objective)(device, scores, scores, sharding.shard_batch(weight, mesh)), scores


def test_first_round(played, recorded):
    np.testing.assert_array_equal(played.first.tokens, recorded["initial_completion"])
    assert not played.first.correct.any()


def test_inpainting_from_the_recorded_hints(played, recorded):
    np.testing.assert_array_equal(played.second.tokens, recorded["inpaint_completion"])
    np.testing.assert_array_equal(played.second.hint_mask, recorded["inpaint_hint_mask"])
    np.testing.assert_array_equal(played.second.correct, recorded["inpaint_correctness"] == 3.0)
    given = played.canvas >= 0
    np.testing.assert_array_equal(played.second.reveal_step == -1, given)


def test_replacement(played, recorded):
    np.testing.assert_array_equal(played.out.batch.completion_tokens[ORDER], recorded["final_completion"])
    np.testing.assert_array_equal(played.out.batch.hint_mask[ORDER], recorded["final_hint_mask"])
    np.testing.assert_array_equal(played.out.batch.completion_mask[ORDER], recorded["completion_mask"] > 0)
    assert played.out.replaced.tolist() == [True, True, False, False, False, False]


def test_rewards_and_advantages(played, recorded):
    np.testing.assert_allclose(played.out.batch.rewards[ORDER], recorded["rewards"].sum(axis=1), atol=1e-6)
    np.testing.assert_allclose(played.out.batch.advantages[ORDER], recorded["advantages"], atol=2e-5, rtol=0)
    np.testing.assert_array_equal(played.out.batch.correct[ORDER], recorded["rewards"][:, 1] == 3.0)


@pytest.mark.parametrize("iteration", [0, 1])
def test_scores_and_filter(played, recorded, iteration):
    """Every iteration of the released code masks the whole completion, so one pass here serves them all."""
    assert recorded["masked_pos"][iteration].all()
    logp, entropy = (np.asarray(x)[ORDER] for x in (played.scores.logp, played.scores.entropy))
    np.testing.assert_allclose(logp, recorded["old_per_token_logps"][iteration], atol=1e-4, rtol=0)
    np.testing.assert_allclose(entropy, recorded["entropy"][iteration], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(np.asarray(played.batch.kept)[ORDER], recorded["token_mask"][iteration])


def test_counts(played, recorded):
    stats = played.out.stats
    expected = {
        "pass_at_1": recorded["metric:initial_correctness_ratio"],
        "all_wrong_before": 1.0,
        "all_wrong_after": recorded["metric:all_wrong_ratio"],
        "rescued_groups": recorded["metric:all_wrong_rescued"],
        "replaced_rows": recorded["metric:num_prompts_replaced_by_inpainting_attempt_1"],
        "completion_length": recorded["metric:completion_length"],
        "reward": recorded["metric:reward"],
        "zero_spread_groups": recorded["metric:zero_std_ratio"],
    }
    assert {name: stats[name] for name in expected} == pytest.approx({name: float(v) for name, v in expected.items()})
    hinted = np.asarray(played.batch.rollout.hint_mask)
    share = (np.asarray(played.batch.kept) & hinted).sum() / hinted.sum()
    assert share == pytest.approx(float(recorded["metric:inpaint_keep_ratio"]))
