"""Bad input stops the command at the door: one sentence, exit code 2, and what lay in the run directory stays."""

import dataclasses
import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from igpo_jax import cli, train
from igpo_jax.errors import UserError
from igpo_jax.training import run_folder
from tests.training import tiny

CONFIG = """
from tests.training import tiny
def get_config():
    return tiny.run_settings(cpu_devices=8)
"""

ROW = {
    "question": "How many legs have 3 cats?",
    "answer": "12",
    "reasoning": "A cat has 4 legs, so 3 cats have 3*4=12.",
}


@pytest.fixture
def earlier(tmp_path):
    """A run directory with files of an earlier run."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "sft").mkdir(parents=True)
    (workdir / "checkpoints" / "sft" / "weights").write_bytes(b"weights")
    (workdir / "started.json").write_text('{"time": 1.0}')
    (workdir / "metrics.jsonl").write_text('{"stage": "sft", "step": 1, "time": 1.0, "loss": 2.0}\n')
    return workdir


def kept(workdir):
    """What must not change; data sets are built anew at any time."""
    return {name: data for name, data in tiny.files_of(workdir).items() if not name.startswith("data/")}


@pytest.fixture
def refused(tmp_path, earlier, capfd):
    """Runs the command, checks the manner of its refusal, and returns the sentence."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)

    def run(*overrides, workdir=earlier):
        before = kept(earlier)
        with pytest.raises(SystemExit) as ended:
            cli.run(
                train.main, ["train", f"--config={config}", f"--workdir={workdir}", *overrides], define=train.define
            )
        out, err = capfd.readouterr()
        assert ended.value.code == 2
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
        assert out == ""
        assert kept(earlier) == before, "nothing of the earlier run is lost or changed"
        return err.removeprefix("error: ").strip()

    return run


def data_file(tmp_path, *lines):
    """A file for all splits, or one of lines given as they are."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return f"--config.data.name=jsonl --config.data.path={path}".split()


def many(count, **changes):
    return [ROW | {"question": f"How many legs have 3 cats and {n} cushions?"} | changes for n in range(count)]


def test_a_missing_data_file(refused, tmp_path):
    said = refused("--config.data.name=jsonl", f"--config.data.path={tmp_path}/absent.jsonl")
    assert f"{tmp_path}/absent.jsonl does not exist" in said


def test_a_malformed_row_is_named_by_file_and_line(refused, tmp_path):
    said = refused(*data_file(tmp_path, *many(2), '{"question": "cut', *many(1)))
    assert f"{tmp_path}/mine.jsonl line 3 is not JSON" in said


def test_a_row_without_reasoning(refused, tmp_path):
    said = refused(*data_file(tmp_path, *many(1), {"question": "What is left?", "answer": "3"}))
    assert "mine.jsonl line 2: field 'reasoning' is missing" in said


def test_a_trace_that_does_not_contain_its_answer(refused, tmp_path):
    rows = data_file(tmp_path, *many(2), ROW | {"answer": "13"})
    said = refused(*rows, "--config.data.on_missing_answer=error")
    assert "mine.jsonl line 3: the solution never states its answer '13'" in said


def test_no_trace_contains_its_answer(refused, tmp_path):
    """Such rows are dropped by default; here none is left."""
    said = refused(*data_file(tmp_path, *many(4, answer="13")))
    assert "no solution states its answer" in said or "no rows in split" in said


def test_an_empty_training_set(refused, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps(ROW))
    said = refused("--config.data.name=jsonl", f"--config.data.path={folder}")
    assert "no rows in split 'sft'" in said
    (folder / "train.jsonl").write_text("\n")
    said = refused("--config.data.name=jsonl", f"--config.data.path={folder}")
    assert f"{folder}/train.jsonl holds no rows" in said


def test_a_prompt_longer_than_the_budget(refused):
    said = refused("--config.prompt_length=9")
    assert "the prompt of row" in said and "prompt_length is 9" in said and "long_prompts" in said


def tokenizer_without(tmp_path, missing):
    special = {"mask_token": "<|mdm_mask|>", "eos_token": "<|endoftext|>"}
    special.pop(missing)
    vocabulary = {token: place for place, token in enumerate([*special.values(), "a"])}
    fast = PreTrainedTokenizerFast(tokenizer_object=Backend(models.WordLevel(vocabulary, unk_token="a")), **special)
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("missing", "words"), [("mask_token", "no mask token"), ("eos_token", "no end token")])
def test_a_tokenizer_without_a_special_token(refused, tmp_path, missing, words):
    folder = tokenizer_without(tmp_path, missing)
    said = refused("--config.tokenizer.kind=path", f"--config.tokenizer.path={folder}")
    assert str(folder) in said and words in said


def test_a_tokenizer_that_is_not_there(refused, tmp_path):
    said = refused("--config.tokenizer.kind=path", f"--config.tokenizer.path={tmp_path}/none")
    assert f"{tmp_path}/none" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.sampler.block_length=7"], ["sampler.length is 24", "block_length 7", "21 or 28"]),
        (["--config.sampler.steps=2"], ["sampler.steps is 2", "3 blocks"]),
        (["--config.sampler.steps=7"], ["sampler.steps is 7", "6 or 9"]),
        (["--config.rl.rollout.group_size=1"], ["group_size is 1", "use 2 or more"]),
        (["--config.rl.micro_batches=3"], ["micro_batches is 3"]),
        (["--config.sft.batch_size=12"], ["sft.batch_size / sft.micro_batches is 6 rows", "8 devices"]),
        (["--config.evaluation.rows_per_program=7"], ["evaluation.rows_per_program is 7 rows", "8 devices"]),
        (["--config.mesh.data=3"], ["mesh", "3", "8"]),
        (["--config.rl.hints.answer_room=24"], ["rl.hints.answer_room is 24", "sampler.length 24"]),
        (["--config.sampler.temperature=0.0"], ["sampler.temperature is 0"]),
        (["--config.name=sft"], ["name is 'sft'"]),
        (["--config.template=papr"], ["template is 'papr'", "did you mean 'paper'"]),
        (["--config.rl.roolout.groups=4"], ["--config.rl.roolout.groups is not a field", "rl.rollout.groups"]),
        (["--config.rl.steps=many"], ["--config.rl.steps is 'many'", "a whole number"]),
        (["--config.rl.hints.ratio_low=half"], ["--config.rl.hints.ratio_low is 'half'", "a number"]),
        (["--config.model.checkpoint=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--confg.seed=1"], ["--confg.seed is not a flag"]),
    ],
)
def test_a_setting_that_cannot_be(refused, overrides, words):
    said = refused(*overrides)
    assert all(word in said for word in words), said


def test_a_run_directory_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert f"--workdir={tmp_path / 'file'} is a file" in refused(workdir=tmp_path / "file")
    for place in (tmp_path / "file" / "run", "/proc/1/run"):
        said = refused(workdir=place)
        assert f"--workdir={place} cannot be written" in said
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    "names",
    [
        ["notes.txt"],
        ["metrics.jsonl", "notes.txt"],
        ["config.json", "model.safetensors", "tokenizer"],
        ["a.py", "b.py", "c.py", "d.py", "e.py"],
    ],
)
def test_a_folder_that_is_no_run_directory(refused, tmp_path, names):
    """Nothing in it is lost, not even the last line of a file that is called as one of a run's."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(
            '{"model_type": "llada"}' if name == "config.json" else "precious, without a newline"
        )
    before = tiny.files_of(folder)
    said = refused(workdir=folder)
    assert f"--workdir={folder} is not the folder of a run, but holds {', '.join(names[:3])}" in said
    assert ("and 2 more" in said) == (len(names) == 5)
    assert refused("--check", workdir=folder) == said
    assert tiny.files_of(folder) == before


def test_logs_and_built_data_may_lie_there_before_the_run(tmp_path):
    for name in ("train.log", ".cache", "data_report.txt", "metrics.jsonl"):
        (tmp_path / name).write_text("" if name == "metrics.jsonl" else "harmless")
    (tmp_path / "data").mkdir()
    run_folder.check_folder(tmp_path)
    run_folder.check_folder(tmp_path / "absent")


def test_damaged_metrics_of_an_earlier_run(refused, earlier):
    (earlier / "metrics.jsonl").write_text('{"stage": "sft"}\n{"stage": "sft", "step": 1, "time": 1.0}\n')
    said = refused()
    assert f"{earlier}/metrics.jsonl line 1" in said


def test_a_damaged_config_of_an_earlier_run(refused, earlier):
    (earlier / "config.json").write_text('{"seed": ')
    assert f"{earlier}/config.json is not valid JSON" in refused()


def test_a_refused_start_leaves_no_tokenizer_behind(refused, earlier):
    """The next attempt may ask for another one."""
    refused("--config.prompt_length=9")
    assert not (earlier / "tokenizer").exists() and not (earlier / "config.json").exists()


def test_a_missing_workdir(tmp_path, capfd):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main, ["train", f"--config={config}"], define=train.define)
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("error: --workdir is missing")


def test_every_batch_divides_over_the_devices():
    settings = tiny.run_settings()
    settings.check_shards(8)
    with pytest.raises(UserError, match=r"evaluation.rows_per_program is 8 rows.*16 devices"):
        settings.check_shards(16)
    without = dataclasses.replace(settings, sft=dataclasses.replace(settings.sft, steps=0, batch_size=6))
    without.check_shards(8)


def test_a_schedule_that_does_not_fit_is_refused_before_anything_runs(refused):
    schedule = ("--config.rl.optimizer.schedule=linear", "--config.rl.optimizer.warmup_steps=10")
    said = refused("--config.rl.steps=2", "--config.rl.inner_updates=2", *schedule)
    assert "rl.optimizer with 4 updates" in said and "warmup_steps" in said
