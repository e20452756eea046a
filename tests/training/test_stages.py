"""Runs that are stopped go on as if nothing had happened; every rollout comes from the newest parameters."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models.config import Compute
from igpo_jax.training import rl_stage
from igpo_jax.training.run_directory import Resuming
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, metrics_of, summary_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

SETTINGS = tiny.run_settings()
CHANGES = Resuming(with_changes=True)


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """(workdir, recorder) of a run without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(SETTINGS, workdir)


def rollouts_of(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "rollouts").iterdir()}


def test_the_example_has_something_to_learn(whole):
    _, run = whole
    assert run.rollouts[0].out.stats["all_wrong_groups"] > 0
    assert sum(rollout.out.replaced.sum() for rollout in run.rollouts) > 0
    assert sum(np.ptp(rollout.out.batch.rewards) for rollout in run.rollouts) > 0
    assert (run.results["sft"]["ff_out"]["weight"] != run.results["rl"]["ff_out"]["weight"]).any()


def test_a_run_stopped_in_every_stage_ends_like_one_that_was_not(whole, tmp_path):
    """Stopped in SFT after update 3, with a checkpoint of update 2; in RL after step 3, with one of step 2."""
    workdir, expected = whole
    first = train(SETTINGS, tmp_path, sft_stops=3)
    assert first.sft_updates == 3 and not first.results
    second = train(SETTINGS, tmp_path, rl_stops=3)
    assert second.sft_updates == 2, "the checkpoint's two updates are not made again"
    third = train(SETTINGS, tmp_path)
    assert third.sft_updates == 0
    assert [rollout.step for rollout in second.rollouts] == [0, 1, 2]
    assert [rollout.step for rollout in third.rollouts] == [2, 3]
    assert_same_bits(second.results["sft"], expected.results["sft"])
    assert_same_bits(third.results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path) == metrics_of(workdir)
    assert summary_of(tmp_path) == summary_of(workdir)
    assert rollouts_of(tmp_path) == rollouts_of(workdir)


def test_a_finished_run_started_again_changes_nothing(whole):
    workdir, expected = whole
    before = tiny.files_of(workdir)
    again = train(SETTINGS, workdir)
    assert tiny.files_of(workdir) == before
    assert again.sft_updates == 0 and not again.rollouts and not again.after
    assert_same_bits(again.results, expected.results)
    assert again.rows == expected.rows


def test_a_run_that_is_given_more_steps_goes_on(whole, tmp_path):
    """Two SFT updates and two RL steps, then four of each: as the run that was asked for four at once."""
    workdir, expected = whole
    sft = dataclasses.replace(SETTINGS.sft, steps=2)
    train(dataclasses.replace(SETTINGS, sft=sft, rl=dataclasses.replace(SETTINGS.rl, steps=0)), tmp_path)
    train(dataclasses.replace(SETTINGS, rl=dataclasses.replace(SETTINGS.rl, steps=2)), tmp_path, resuming=CHANGES)
    with pytest.raises(UserError, match=r"other settings: rl\.steps 2 -> 4; .* take the changes with --resume-with"):
        train(SETTINGS, tmp_path)
    last = train(SETTINGS, tmp_path, resuming=CHANGES)
    assert [rollout.step for rollout in last.rollouts] == [2, 3]
    assert_same_bits(last.results, expected.results)
    assert summary_of(tmp_path) == summary_of(workdir), "the table tells of the longer run, not of the shorter one"


def test_rows_and_evaluations_that_a_kill_came_before_are_made_up_for(whole):
    """Between the file of an evaluation and its row, and between a checkpoint and the evaluation at its step."""
    workdir, _ = whole
    expected, log = metrics_of(workdir), workdir / "metrics.jsonl"
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join(rows[:-1]))
    again = train(SETTINGS, workdir)
    assert metrics_of(workdir) == expected and not again.after
    owed = [(stage, step) for stage, step, _ in expected].index(("igpo/eval", 3))
    log.write_text("".join(rows[:owed]) + rows[owed][:25])
    shutil.rmtree(workdir / "checkpoints" / "igpo" / "4")
    (workdir / "evaluations" / "igpo.json").unlink()
    train(SETTINGS, workdir)
    assert metrics_of(workdir) == expected


def test_a_run_is_not_cut_to_fewer_steps_than_it_has_made(whole):
    workdir, _ = whole
    fewer = dataclasses.replace(SETTINGS, rl=dataclasses.replace(SETTINGS.rl, steps=2))
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"has made 4 steps of igpo, but rl\.steps is 2; ask for 4 or more"):
        train(fewer, workdir, resuming=CHANGES)
    assert (workdir / "config.json").read_bytes() == before and not (workdir / "history.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"holds a run with other settings: seed 0 -> 1; use another --workdir"),
        ({"seed": 1, "template": "paper"}, r"settings: seed 0 -> 1; template 'plain' -> 'paper'; use"),
        ({"model": dataclasses.replace(SETTINGS.model, d_model=64)}, r"model\.d_model 32 -> 64"),
        ({"sft": dataclasses.replace(SETTINGS.sft, steps=6)}, r"cannot be made longer .*: sft\.steps 4 -> 6"),
        ({"name": "other"}, r"name 'igpo' -> 'other'"),
    ],
)
def test_a_run_is_not_mixed_with_another(whole, changes, words):
    workdir, _ = whole
    before = tiny.files_of(workdir)
    with pytest.raises(UserError, match=words):
        train(dataclasses.replace(SETTINGS, **changes), workdir)
    assert tiny.files_of(workdir) == before


def test_every_rollout_is_sampled_by_the_newest_parameters(whole):
    _, run = whole
    updates = SETTINGS.rl.inner_updates
    assert len(run.after) == SETTINGS.rl.steps * updates
    start = run.results["sft"]["ff_out"]["weight"]
    newest = [start, *run.after[updates - 1 :: updates]]
    for rollout, weight in zip(run.rollouts, newest, strict=False):
        np.testing.assert_array_equal(rollout.policy, weight)
    for one, other in itertools.pairwise([start, *run.after]):
        assert (one != other).any(), "every update moves the policy"


def test_scores_are_of_the_sampling_policy_and_of_the_start(whole):
    """Per step: behaviour policy, reference, and where rows hold hints the behaviour policy once more."""
    _, run = whole
    start, scored = run.results["sft"]["ff_out"]["weight"], iter(run.scored)
    for rollout in run.rollouts:
        for expected in (rollout.policy, start, *([rollout.policy] if rollout.out.batch.hint_mask.any() else [])):
            adapted, weight = next(scored)
            assert not adapted
            np.testing.assert_array_equal(weight, expected)
    assert next(scored, None) is None


def test_the_baseline_differs_in_its_second_batch_alone(whole, tmp_path):
    _, igpo = whole
    plain = dataclasses.replace(SETTINGS.rl.rollout, second_batch="plain")
    settings = dataclasses.replace(SETTINGS, name="grpo", rl=dataclasses.replace(SETTINGS.rl, steps=1, rollout=plain))
    grpo = train(settings, tmp_path)
    assert_same_bits(grpo.results["sft"], igpo.results["sft"])
    mine, yours = grpo.rollouts[0].out, igpo.rollouts[0].out
    np.testing.assert_array_equal(mine.first_correct, yours.first_correct)
    # Rows that were not replaced in either arm are the same completions.
    kept = ~(mine.replaced | yours.replaced)
    assert kept.any()
    np.testing.assert_array_equal(mine.batch.completion_tokens[kept], yours.batch.completion_tokens[kept])
    np.testing.assert_array_equal(mine.batch.prompt_tokens, yours.batch.prompt_tokens)
    assert len(mine.second.tokens) == len(yours.second.tokens), "both draw as many completions the second time"
    assert not mine.second.hint_mask.any() and yours.second.hint_mask.any()
    assert (tmp_path / "checkpoints" / "grpo" / "1").is_dir()
    assert {stage for stage, _, _ in metrics_of(tmp_path)} == {"eval", "sft", "grpo"}


def test_lora_on_top_of_full_sft(whole, tmp_path):
    """The adapters start at the SFT result, which stays the reference; the base below them does not move."""
    _, full = whole
    rl = dataclasses.replace(SETTINGS.rl, steps=2, lora=tiny.LORA)
    run = train(dataclasses.replace(SETTINGS, rl=rl), tmp_path)
    assert_same_bits(run.results["sft"], full.results["sft"])
    np.testing.assert_array_equal(
        run.rollouts[0].out.batch.completion_tokens, full.rollouts[0].out.batch.completion_tokens
    )
    assert not run.rollouts[0].policy.any() and run.rollouts[1].policy.any(), "the first rollout is the base model's"
    np.testing.assert_array_equal(run.rollouts[1].policy, run.after[1])
    start = run.results["sft"]
    assert {adapted for adapted, _ in run.scored} == {True, False}
    for _, weight in run.scored:
        np.testing.assert_array_equal(weight, start["ff_out"]["weight"])
    moved = {
        name
        for name in start["blocks"]
        if (run.results["rl"]["blocks"][name]["weight"] != start["blocks"][name]["weight"]).any()
    }
    assert moved == set(tiny.LORA.layers)
    assert_same_bits(
        [run.results["rl"][name] for name in ("wte", "ln_f", "ff_out")],
        [start[name] for name in ("wte", "ln_f", "ff_out")],
    )


def test_in_bfloat16_the_reference_is_the_rounded_start_and_a_stopped_run_goes_on(monkeypatch, tmp_path):
    """The float32 parameters that RL starts from are freed; the second process reads them from the SFT checkpoint."""
    references = []

    class Watched(rl_stage.RlLoop):
        def __init__(self, run, reference, *rest):
            super().__init__(run, reference, *rest)
            references.append(jax.tree.map(np.asarray, reference))

    monkeypatch.setattr(rl_stage, "RlLoop", Watched)
    settings = dataclasses.replace(SETTINGS, compute=Compute(dtype="bfloat16"))
    expected = train(settings, tmp_path / "whole")
    train(settings, tmp_path / "cut", rl_stops=3)
    last = train(settings, tmp_path / "cut")
    assert_same_bits(last.results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    start = expected.results["sft"]["ff_out"]["weight"]
    assert len(references) == 3
    for reference in references:
        np.testing.assert_array_equal(reference["ff_out"]["weight"], start.astype(jnp.bfloat16))
