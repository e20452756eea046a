"""One whole run through the command: every file it promises, and that they agree with one another."""

import json
import pathlib
import re

import numpy as np
import pytest

from igpo_jax import cli, report, settings, train
from igpo_jax.data.tokenizers import load_tokenizer
from igpo_jax.models.config import ModelConfig
from igpo_jax.rewards.verdict import judge_one
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.metrics import read_metrics
from igpo_jax.training.run_settings import RunSettings
from tests.training import tiny

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
CONFIG = """
from igpo_jax.rewards.pool import JudgeSettings
from tests.training import tiny
def get_config():
    return tiny.run_settings(cpu_devices=8, judge=JudgeSettings(workers=1))
"""


@pytest.fixture(scope="module")
def run(compiled_once, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "config.py").write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        cli.run(
            train.main,
            ["train", f"--config={folder}/config.py", f"--workdir={folder}/run", "--config.seed=3"],
            define=train.define,
        )
    assert ended.value.code == 0
    return folder / "run"


def read(path):
    return json.loads(path.read_text())


def test_the_config_of_the_run_is_stored(run):
    stored = settings.from_json(RunSettings, (run / "config.json").read_text())
    changed = {path: now for path, _, now in settings.changed_fields(tiny.run_settings(), stored)}
    assert changed == {"seed": 3, "cpu_devices": 8, "judge.workers": 1}


def test_the_facts_of_the_run_are_stored(run):
    facts = read(run / "environment.json")
    assert (facts["devices"], facts["platform"]) == (8, "cpu") and len(facts["template_hash"]) == 12
    report = read(run / "data_report.json")
    assert {split: report[split]["kept"] for split in report} == {"sft": 64, "rl": 16, "test": 7}
    config = ModelConfig.from_hf(read(run / "model_config.json"), "model_config.json")
    tokenizer = load_tokenizer(run / "tokenizer")
    assert config.vocab_size == config.embedding_size == tokenizer.vocab_size
    assert (config.mask_token_id, config.eos_token_id) == (tokenizer.mask_id, tokenizer.eos_id)
    assert (config.d_model, config.max_sequence_length) == (32, 32 + 24)


def test_every_step_is_logged_once(run):
    rows = [(row.stage, row.step) for row in read_metrics(run)]
    igpo = [("igpo", 1), ("igpo", 2), ("igpo", 3), ("igpo/eval", 3), ("igpo", 4)]
    assert rows == [("eval", 0), ("sft", 2), ("sft", 4), ("eval", 4), *igpo, ("eval", 4)]
    by_stage = {row.stage: row.values for row in read_metrics(run)}
    assert {"loss", "grad_norm", "learning_rate"} <= set(by_stage["sft"])
    expected = {
        "reward",
        "pass_at_1",
        "all_wrong_before",
        "all_wrong_after",
        "replaced_rows",
        "hint_ratio",
        "loss",
        "kl",
    }
    assert expected <= set(by_stage["igpo"])
    assert {"rollout_seconds", "score_seconds", "update_seconds", "judge_seconds"} <= set(by_stage["igpo"])
    for row in read_metrics(run):
        missing = [name for name, value in row.values.items() if not np.isfinite(value)]
        assert all("hint" in name for name in missing), (
            "only what is said of hints may be missing, where there are none"
        )
    for stage in ("eval", "sft", "igpo", "igpo/eval"):
        assert list((run / "tensorboard" / stage).glob("events.*"))


def test_the_table_is_what_was_measured(run):
    summary = read(run / "summary.json")
    assert [(row["stage"], row["step"]) for row in summary] == [("start", 0), ("sft", 4), ("igpo", 4)]
    logged = [row.values for row in read_metrics(run) if row.stage == "eval"]
    for row, values in zip(summary, logged, strict=True):
        detail = read(run / "evaluations" / f"{row['stage']}.json")
        assert {name: detail[name] for name in row} == row
        assert len(detail["correct"]) == row["questions"] == 7
        assert row["pass_at_1"] == sum(detail["correct"]) / 7 == values["pass_at_1"]
    steps = [row.values for row in read_metrics(run) if row.stage == "igpo"]
    for name in ("all_wrong_before", "all_wrong_after", "rescued_groups", "replaced_rows"):
        assert summary[2][name] == pytest.approx(np.mean([values[name] for values in steps]))


def test_checkpoints_of_both_stages(run):
    for stage, steps in (("sft", [2, 4]), ("igpo", [2, 3, 4])):
        with Checkpoints(run / "checkpoints" / stage, read_only=True) as saved:
            assert set(saved.steps()) <= set(steps) and saved.steps()[-1] == 4


def test_pictures(run):
    pictures = {path.name: path.read_bytes() for path in (run / "plots").iterdir()}
    assert {"overview.png", "sft_loss.png", "reward.png", "all_wrong.png", "evaluation.png", "time.png"} <= set(
        pictures
    )
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in pictures.values())


def test_saved_rollouts(run):
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == ["igpo_000002.jsonl", "igpo_000004.jsonl"]
    tokenizer = load_tokenizer(run / "tokenizer")
    for path in (run / "rollouts").iterdir():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        learnt = [record for record in records if record["learnt_from"]]
        second = [record for record in records if not record["learnt_from"]]
        assert len(learnt) == 16 and len(second) % 4 == 0
        assert [record["group"] for record in learnt] == [group for group in range(4) for _ in range(4)]
        assert any(any(record["hinted"]) for record in second), (
            "an untrained model is wrong everywhere, so hints are drawn"
        )
        for record in records:
            check_record(record, tokenizer)
        for group in range(4):
            mine = [record for record in records if record["group"] == group]
            assert {record["all_wrong"] for record in mine} == {len(mine) > 4}
            assert {record["rescued"] for record in mine} == {any(record["replaced"] for record in mine)}
            rewards = np.array([record["reward"] for record in learnt if record["group"] == group])
            advantages = [record["advantage"] for record in learnt if record["group"] == group]
            np.testing.assert_allclose(advantages, rewards - rewards.mean(), atol=1e-6)


def test_the_report_of_the_run(run, tmp_path, capsys):
    assert report.main([str(run), f"--output={tmp_path / 'page.html'}"]) == 0
    assert capsys.readouterr().err == ""
    text = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', text)[1])
    lines = [line for path in (run / "rollouts").iterdir() for line in path.read_text().splitlines()]
    assert len(data["rollouts"]["rows"]) == data["rollouts"]["total"] == len(lines)
    assert {"sft_loss", "reward", "all_wrong", "kl", "gradient_norm", "evaluation"} <= {
        f["name"] for f in data["figures"]
    }


def check_record(record, tokenizer):
    """A saved completion agrees with itself, with the judge and with its ground truth."""
    length = len(record["pieces"])
    assert all(len(record[name]) == length for name in ("hinted", "reveal_step"))
    trace = [tokenizer.decode([token]) for token in tokenizer.encode(record["trace"])]
    for place, hinted in enumerate(record["hinted"]):
        assert (record["reveal_step"][place] == -1) == bool(hinted)
        if hinted:
            assert record["pieces"][place].strip() == trace[place].strip()
    assert record["correct"] == judge_one(record["gold"], record["completion"]).correct
    assert "".join(record["pieces"]) == record["completion"]
    assert record["truncated"] == (length == 24 and record["pieces"][-1] != "")
    assert record["reward"] == float(record["correct"])
    assert record["replaced"] == (record["learnt_from"] and record["round"] == "second")
    if record["learnt_from"]:
        assert len(record["kept"]) == length
        assert all(kept or hinted for kept, hinted in zip(record["kept"], record["hinted"], strict=True))


def test_the_baseline_is_one_word_away():
    """The quickstart's variants differ in their name and their second batch alone."""
    igpo, grpo = (cli.load_config(f"{QUICKSTART}:{variant}") for variant in ("igpo", "grpo"))
    changed = {path: (a, b) for path, a, b in settings.changed_fields(igpo, grpo)}
    assert changed == {"name": ("igpo", "grpo"), "rl.rollout.second_batch": ("inpaint", "plain")}
    default = cli.load_config(str(QUICKSTART))
    assert settings.changed_fields(default, igpo) == []
