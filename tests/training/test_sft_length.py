"""SFT may have a canvas of its own, and long traces follow the rule that the settings name."""

import dataclasses

import pytest

from igpo_jax.errors import UserError
from igpo_jax.training import run as run_lib
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.sft import SftSettings
from tests.rl.rollout_cases import RuleJudge
from tests.training import tiny
from tests.training.recipe_cases import lucky


def prepared(tmp_path, **changes) -> run_lib.Run:
    settings = tiny.run_settings()
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, sft_lengths=(1, 2)))
    settings = dataclasses.replace(settings, sft=dataclasses.replace(settings.sft, **changes))
    return run_lib.prepare(settings, tmp_path, RuleJudge(lucky))[0]


def test_without_its_own_length_sft_has_the_samplers(tmp_path):
    run = prepared(tmp_path)
    length = run.settings.sampler.length
    assert run.encoded["sft"].completion_tokens.shape[1] == run.encoded["rl"].completion_tokens.shape[1] == length


def test_a_canvas_of_its_own_leaves_rollouts_alone(tmp_path):
    run = prepared(tmp_path, completion_length=40)
    assert run.encoded["sft"].completion_tokens.shape[1] == 40
    assert run.encoded["rl"].completion_tokens.shape[1] == run.settings.sampler.length
    assert run.model.config.max_sequence_length == run.settings.prompt_length + 40


def test_long_traces_are_dropped_or_cut_and_counted(tmp_path):
    whole = prepared(tmp_path / "all").encoded["sft"]
    rows, shortest = len(whole), min(len(trace.tokens) for trace in whole.traces)
    dropped = prepared(tmp_path / "drop", completion_length=shortest + 1).encoded["sft"]
    cut = prepared(tmp_path / "cut", completion_length=shortest + 1, long_completions="cut").encoded["sft"]
    gone = dropped.report["dropped"]["completion_too_long"]
    assert 0 < gone < rows and len(dropped) == rows - gone
    assert len(cut) == rows and cut.report["completions_cut"] == gone and not cut.report["dropped"]


def test_bad_values_are_refused():
    with pytest.raises(UserError, match=r"sft\.completion_length is -1, expected"):
        SftSettings(completion_length=-1)
    with pytest.raises(UserError, match=r"sft\.long_completions is 'shorten'"):
        SftSettings(long_completions="shorten")
    assert RunSettings(sft=SftSettings(completion_length=7)).sft_length == 7
