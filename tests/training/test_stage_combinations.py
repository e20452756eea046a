"""SFT to RL to export, full and LoRA in every combination; SFT on rows of like length; training on puzzles."""

import dataclasses
import json

import numpy as np
import pytest

from convert import __main__ as convert
from convert import hf
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.tokenizers import TokenizerSettings
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.models.lora import LoraSettings
from igpo_jax.rewards.pool import JudgeSettings
from igpo_jax.training.run_settings import RunSettings
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, metrics_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

FULL, LORA = LoraSettings(), LoraSettings(rank=2, alpha=4.0)


def settings_of(sft_lora: LoraSettings = FULL, rl_lora: LoraSettings = FULL, **changes) -> RunSettings:
    base = tiny.run_settings()
    return dataclasses.replace(
        base,
        sft=dataclasses.replace(base.sft, lora=sft_lora, steps=2),
        rl=dataclasses.replace(base.rl, lora=rl_lora, steps=1, save_rollouts_every=0),
        evaluation=dataclasses.replace(base.evaluation, every=0),
        **changes,
    )


def logits(config: llada.ModelConfig, params: llada.Params) -> np.ndarray:
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % (config.vocab_size - 2)
    policy, model = llada.Policy(params), llada.Model(config)
    return np.asarray(llada.head_logits(policy, model, llada.forward(policy, model, tokens)))


@pytest.mark.slow
@pytest.mark.parametrize("rl_lora", [FULL, LORA], ids=["rl_full", "rl_lora"])
@pytest.mark.parametrize("sft_lora", [FULL, LORA], ids=["sft_full", "sft_lora"])
def test_sft_to_rl_to_export(tmp_path, sft_lora, rl_lora):
    """The exported checkpoint computes what the model computed that the run left in memory."""
    run = train(settings_of(sft_lora, rl_lora), tmp_path / "run")
    assert (run.results["sft"]["blocks"]["q_proj"]["weight"] != run.results["rl"]["blocks"]["q_proj"]["weight"]).any()
    assert convert.main(["export", "--source", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    config, exported = hf.load_checkpoint(tmp_path / "out")
    np.testing.assert_allclose(logits(config, exported), logits(config, run.results["rl"]), rtol=0, atol=1e-5)
    assert np.abs(logits(config, exported) - logits(config, run.results["sft"])).max() > 1e-4


def by_length(**changes) -> RunSettings:
    base = settings_of()
    sft = dataclasses.replace(base.sft, steps=4, length_buckets=2, padding="batch", **changes)
    data = dataclasses.replace(base.data, sft_lengths=(1, 2))
    return dataclasses.replace(base, data=data, sft=sft, rl=dataclasses.replace(base.rl, steps=0))


@pytest.mark.slow
def test_sft_by_length_goes_on_bit_for_bit(tmp_path):
    whole, stopped, resumed = tmp_path / "whole", tmp_path / "stopped", tmp_path / "stopped"
    run = train(by_length(), whole)
    train(by_length(), stopped, sft_stops=3)
    again = train(by_length(), resumed)
    assert again.sft_updates < run.sft_updates
    assert_same_bits(again.results["sft"], run.results["sft"])
    assert metrics_of(whole) == metrics_of(resumed)
    buckets = json.loads((whole / "data_report.json").read_text())["sft"]["length_buckets"]
    assert len(buckets["widths"]) > 1 and buckets["filler_share"] < buckets["filler_share_without"]


@pytest.mark.slow
def test_epochs_become_steps(tmp_path, capsys):
    """64 rows in batches of 16, one and a quarter times: 5 updates; the same command goes on in the same directory."""
    settings = dataclasses.replace(by_length(epochs=1.25), warm_up=True)
    assert train(settings, tmp_path).sft_updates == 5
    assert capsys.readouterr().out.count("the update at ") == 2, "both widths are compiled before the first batch"
    assert json.loads((tmp_path / "config.json").read_text())["sft"]["steps"] == 5
    assert train(settings, tmp_path).sft_updates == 0


@pytest.mark.slow
def test_training_on_puzzles(tmp_path):
    """Countdown, whose gold answer is the puzzle: asked, judged as such, and hinted at from a solution made for it."""
    (tmp_path / "test.jsonl").write_text('{"input": "3,4,5", "output": "12"}\n')
    base = settings_of()
    settings = dataclasses.replace(
        base,
        prompt_length=96,
        data=DataSettings(name="countdown", path=str(tmp_path), sft_rows=8, rl_rows=16),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=400),
        sampler=dataclasses.replace(base.sampler, length=96, block_length=96, steps=2),
        judge=JudgeSettings(kind="countdown"),
        sft=dataclasses.replace(base.sft, steps=0),
        rl=dataclasses.replace(base.rl, steps=1, save_rollouts_every=1),
    )
    train(settings, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "igpo_000001.jsonl").open()]
    numbers, target = json.loads(rows[0]["gold"])
    assert f"numbers {', '.join(map(str, numbers))} with" in rows[0]["question"]
    assert f"the result is {target}." in rows[0]["question"]
    assert any(row["hint_ratio"] > 0 for row in rows)


def test_the_judge_has_to_know_the_puzzles():
    base = settings_of()
    with pytest.raises(UserError, match=r"data set 'sudoku', but judge.kind is 'math'; set --config.judge.kind=sudoku"):
        dataclasses.replace(base, data=DataSettings(name="sudoku"))
    with pytest.raises(UserError, match=r"data set 'chain', but judge.kind is 'sudoku'; set --config.judge.kind=math"):
        dataclasses.replace(base, judge=JudgeSettings(kind="sudoku"))
