"""The smoke test before a long run: the same program shapes in fewer rows, and a verdict on the restored parameters."""

import dataclasses

import pytest

from configs import gsm8k_small, quickstart
from igpo_jax import settings as settings_lib
from igpo_jax.training import check, recipe

CONFIGS = [quickstart.get_config(), quickstart.get_config("official"), gsm8k_small.get_config()]


@pytest.mark.parametrize("config", CONFIGS)
def test_program_shapes_stay_those_of_the_config(config):
    tiny = check.smallest(config)
    assert tiny.sft.batch_size // tiny.sft.micro_batches == config.sft.batch_size // config.sft.micro_batches
    for parts in ("micro_batches", "score_batches"):
        rows = [each.rl.rollout.rows // getattr(each.rl, parts) for each in (tiny, config)]
        assert rows[0] == rows[1]
    assert tiny.rl.rollout.rows <= config.rl.rollout.rows
    assert tiny.rl.rollout.rows % tiny.rl.rollout.group_size == 0
    assert (tiny.sft.steps, tiny.rl.steps) == (1, 1)
    assert tiny.sampler == config.sampler and tiny.model == config.model and tiny.mesh == config.mesh


def test_a_stage_that_the_config_leaves_out_stays_out():
    config = quickstart.get_config()
    tiny = check.smallest(dataclasses.replace(config, sft=dataclasses.replace(config.sft, steps=0)))
    assert tiny.sft.steps == 0 and tiny.rl.steps == 1


def test_settings_survive_the_way_through_the_command_line():
    tiny = check.smallest(quickstart.get_config())
    assert settings_lib.from_config_dict(type(tiny), settings_lib.to_config_dict(tiny)) == tiny


@pytest.mark.parametrize(("second", "verdict"), [(0.5, True), (0.25, False)])
def test_the_verdict_compares_what_was_saved_with_what_was_restored(tmp_path, monkeypatch, capsys, second, verdict):
    scores = iter([0.5, second])
    kept = tmp_path / "metrics.jsonl"
    kept.write_text("of the run")
    (tmp_path / "started.json").write_text('{"time": 1.0}')

    def train(settings, folder, judge, lasting):
        assert not lasting, "its folder is removed: nobody is sent there"
        (folder / "evaluations").mkdir()
        return [{"stage": "igpo", "pass_at_1": next(scores), "seconds": 1.0}]

    monkeypatch.setattr(recipe, "train", train)
    assert check.check(quickstart.get_config(), tmp_path, None) is verdict
    said = capsys.readouterr().out
    assert ("restored to the same scores" in said) is verdict
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "metrics.jsonl", "started.json"]
    assert kept.read_text() == "of the run"
