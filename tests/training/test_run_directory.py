"""An old run directory goes on with what it had, or with what the flags give leave for; every difference is named."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from igpo_jax import settings as settings_lib
from igpo_jax.errors import UserError
from igpo_jax.models.lora import LoraSettings
from igpo_jax.training import run_directory
from igpo_jax.training.run_directory import AS_BEFORE, Resuming
from tests.training import tiny

SETTINGS = tiny.run_settings()
CHANGES, DEVICES = Resuming(with_changes=True), Resuming(other_devices=True)


@dataclasses.dataclass
class Rows:
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return Rows(rng.integers(0, 9, (4, 3)), rng.integers(0, 9, (4, 5)))


@pytest.fixture
def workdir(tmp_path):
    """The directory of a run that has made 4 SFT steps."""
    (tmp_path / "started.json").write_text('{"time": 1.0}')
    (tmp_path / "config.json").write_text(settings_lib.to_json(SETTINGS))
    (tmp_path / "environment.json").write_text(json.dumps(facts()))
    (tmp_path / "checkpoints" / "sft" / "4").mkdir(parents=True)
    return tmp_path


def facts(**changes):
    mesh = tiny.mesh_of(tiny.MESHES["8x1x1"])
    return run_directory.environment(mesh, "abc", {"sft": rows(), "test": rows(1)}) | changes


def changed(**sections):
    """SETTINGS with fields of its sections replaced."""
    return dataclasses.replace(
        SETTINGS,
        **{
            name: dataclasses.replace(getattr(SETTINGS, name), **value) if isinstance(value, dict) else value
            for name, value in sections.items()
        },
    )


def test_a_new_directory_and_the_same_settings_are_no_change(workdir, tmp_path):
    assert run_directory.check_settings(SETTINGS, tmp_path / "new", AS_BEFORE) == []
    assert run_directory.check_settings(SETTINGS, workdir, AS_BEFORE) == []
    assert run_directory.check_environment(facts(), tmp_path / "new", AS_BEFORE) == []
    assert run_directory.check_environment(facts(), workdir, AS_BEFORE) == []


def test_every_difference_is_named_in_one_sentence(workdir):
    other = changed(seed=3, sft={"steps": 6}, sampler={"temperature": 0.5}, data={"name": "jsonl", "path": "x"})
    with pytest.raises(UserError) as refused:
        run_directory.check_settings(other, workdir, AS_BEFORE)
    said = str(refused.value)
    for words in ("seed 0 -> 3", "sft.steps 4 -> 6", "sampler.temperature 1.0 -> 0.5", "data.name 'chain' -> 'jsonl'"):
        assert words in said
    assert str(workdir) in said and "--resume-with-changes" in said and "--allow-other-devices" not in said
    assert "\n" not in said and "data.path" not in said
    taken = run_directory.check_settings(other, workdir, CHANGES)
    assert [change.what for change in taken] == ["seed", "data.name", "sampler.temperature", "sft.steps"]


@pytest.mark.parametrize(
    "sections",
    [
        {"sft": {"log_every": 1}},
        {"rl": {"save_rollouts_every": 0}},
        {"evaluation": {"every": 1}},
        {"checkpoints": {"every": 7, "keep_last": 9}},
        {"judge": {"workers": 3}},
        {"cpu_devices": 8},
        {"warm_up": False},
        {"nonfinite_limit": 3},
    ],
)
def test_what_changes_no_number_is_free(workdir, sections):
    assert run_directory.check_settings(changed(**sections), workdir, AS_BEFORE) == []


@pytest.mark.parametrize("sections", [{"mesh": {"data": 4, "fsdp": 2}}, {"sft": {"micro_batches": 4}}])
def test_the_layout_may_change_with_the_devices(workdir, sections):
    with pytest.raises(UserError, match="--resume-with-changes"):
        run_directory.check_settings(changed(**sections), workdir, AS_BEFORE)
    assert run_directory.check_settings(changed(**sections), workdir, DEVICES)
    with pytest.raises(UserError, match="seed 0 -> 1;"):
        run_directory.check_settings(changed(seed=1, **sections), workdir, DEVICES)


def test_sft_is_fixed_once_rl_has_begun_from_it(workdir):
    longer = changed(sft={"steps": 9})
    assert run_directory.check_settings(longer, workdir, CHANGES)
    (workdir / "checkpoints" / "igpo" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be made longer or shorter now: sft\.steps 4 -> 9; keep sft\.steps"):
        run_directory.check_settings(longer, workdir, CHANGES)


@pytest.mark.parametrize(
    ("stage", "sections", "words"),
    [
        (
            "sft",
            {"model": {"d_model": 16, "n_layers": 1}},
            r"fit no other model\.d_model 32 -> 16; model\.n_layers 2 -> 1",
        ),
        ("igpo", {"model": {"n_heads": 2}}, r"fit no other model\.n_heads 4 -> 2"),
        ("sft", {"sft": {"lora": LoraSettings(rank=4)}}, r"fit no other sft\.lora\.rank 0 -> 4; keep what the run has"),
        ("igpo", {"rl": {"lora": LoraSettings(rank=4)}}, r"fit no other rl\.lora\.rank 0 -> 4; keep what the run has"),
        ("igpo", {"rl": {"steps": 1}}, r"has made 4 steps of igpo, but rl\.steps is 1; ask for 4 or more"),
        ("sft", {"sft": {"steps": 3}}, r"has made 4 steps of sft, but sft\.steps is 3; ask for 4 or more"),
    ],
)
def test_what_the_checkpoints_rule_out_is_refused_before_it_is_taken(workdir, stage, sections, words):
    """The run directory would otherwise hold a config that neither fits its checkpoints nor the user's old command."""
    assert run_directory.check_settings(changed(**sections), workdir / "new", CHANGES) == []
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    assert run_directory.check_settings(changed(**sections), workdir, CHANGES)
    (workdir / "checkpoints" / stage / "4").mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        run_directory.check_settings(changed(**sections), workdir, CHANGES)


def test_a_setting_newer_than_the_run_had_its_default(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    del stored["seed"], stored["checkpoints"]
    stored["gone"] = 5
    (workdir / "config.json").write_text(json.dumps(stored))
    assert run_directory.check_settings(SETTINGS, workdir, AS_BEFORE) == []
    with pytest.raises(UserError, match="seed 0 -> 4;"):
        run_directory.check_settings(changed(seed=4), workdir, AS_BEFORE)


@pytest.mark.parametrize(
    ("text", "words"), [('{"seed": ', "is not valid JSON"), ("[1, 2]", "holds list, expected the object")]
)
@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_a_damaged_record_is_named(workdir, name, text, words):
    (workdir / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} {words}"):
        run_directory.check_settings(SETTINGS, workdir, CHANGES)
        run_directory.check_environment(facts(), workdir, CHANGES)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("devices", 4, "devices of the run 8 -> 4"),
        ("device_kind", "H100", "device_kind of the run 'cpu' -> 'H100'"),
        ("processes", 2, "processes of the run 1 -> 2"),
    ],
)
def test_other_devices_are_refused_without_leave(workdir, name, value, words):
    for resuming in (AS_BEFORE, CHANGES):
        with pytest.raises(UserError, match=f"{words}; .*--allow-other-devices"):
            run_directory.check_environment(facts(**{name: value}), workdir, resuming)
    (change,) = run_directory.check_environment(facts(**{name: value}), workdir, DEVICES)
    assert str(change) == words and change.is_device


def test_other_rows_under_the_same_name_are_refused(workdir):
    mesh = tiny.mesh_of(tiny.MESHES["8x1x1"])
    now = run_directory.environment(mesh, "abc", {"sft": rows(5), "rl": rows(2)})
    with pytest.raises(UserError, match=r"rows of the split 'sft' '\w{12}' -> '\w{12}'; .*--resume-with-changes"):
        run_directory.check_environment(now, workdir, DEVICES)
    (change,) = run_directory.check_environment(now, workdir, CHANGES)
    assert change.what == "rows of the split 'sft'", "a split that is new is no change"


def test_a_run_from_before_these_facts_were_recorded_goes_on(workdir):
    (workdir / "environment.json").write_text(json.dumps({"devices": 8, "platform": "cpu", "jax": jax.__version__}))
    assert run_directory.check_environment(facts(), workdir, AS_BEFORE) == []


def test_another_jax_is_said(workdir, capsys):
    assert run_directory.check_environment(facts(jax="9.9.9"), workdir, AS_BEFORE) == []
    assert f"made with jax {jax.__version__} so far, now 9.9.9" in " ".join(capsys.readouterr().out.split())


def test_what_is_taken_is_said_and_kept(workdir, capsys):
    changes = run_directory.check_settings(changed(seed=2), workdir, CHANGES)
    changes += run_directory.check_environment(facts(devices=4), workdir, DEVICES)
    (workdir / "journal").mkdir()
    (workdir / "journal" / "igpo_000001.p0.jsonl").write_text("{}")
    run_directory.take(changes, workdir, ("sft", "igpo"))
    assert not (workdir / "journal").exists(), "the steps after the checkpoints are other ones from here on"
    (workdir / "journal").mkdir()
    run_directory.take([], workdir, ("sft", "igpo"))
    assert (workdir / "journal").exists()
    said = capsys.readouterr().out
    assert "taken otherwise than before: seed 0 -> 2; devices of the run 8 -> 4\n" in said
    assert "not the same to the bit" in said
    (row,) = [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]
    assert row["after"] == {"sft": 4, "igpo": 0}
    assert row["changes"] == {"seed": [0, 2], "devices of the run": [8, 4]}
