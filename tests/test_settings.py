"""Settings survive every form they take, and a wrong one is named by its full path."""

import dataclasses
import json

import ml_collections
import pytest

from igpo_jax import settings
from igpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hints:
    """The hints."""

    ratio_low: float = 0.2  #: lower end | of the draw
    chunk_min: int = 5
    #: Patterns in the order
    #: they are tried.
    patterns: tuple[str, ...] = ("chunks", "prefix")
    size: tuple[int, float] = (1, 2.0)  # a "#" in "text" is kept

    def __post_init__(self):
        if self.ratio_low > 1:
            raise UserError(f"ratio_low is {self.ratio_low}, expected at most 1")


@dataclasses.dataclass(frozen=True)
class Rl:
    hints: Hints = Hints()
    steps: int = 3
    keep: bool = True


@dataclasses.dataclass(frozen=True)
class Run:
    name: str = "igpo"
    rl: Rl = Rl()
    limit: int | None = None
    pad_ids: tuple[int, ...] = ()


CHANGED = Run(name="grpo", rl=Rl(Hints(0.5, 1, (), (3, 4.5)), 9, False), limit=4, pad_ids=(1, 2))


@pytest.mark.parametrize("run", [Run(), CHANGED])
def test_a_config_dict_round_trips(run):
    config = settings.to_config_dict(run)
    assert settings.from_config_dict(Run, config) == run
    assert config.is_locked
    assert config.rl.hints.ratio_low == run.rl.hints.ratio_low


@pytest.mark.parametrize("run", [Run(), CHANGED])
def test_json_round_trips(run):
    assert settings.from_json(Run, settings.to_json(run)) == run
    assert json.loads(settings.to_json(run))["rl"]["steps"] == run.rl.steps


def test_the_config_dict_is_type_safe_and_open_where_a_field_is_none():
    config = settings.to_config_dict(Run())
    with pytest.raises(TypeError):
        config.rl.steps = "many"
    with pytest.raises(AttributeError):
        config.rl.step = 3
    config.limit = 7
    assert settings.from_config_dict(Run, config).limit == 7


def test_an_int_is_a_float_and_a_list_is_a_tuple():
    run = settings.from_config_dict(Run, {"rl": {"hints": {"ratio_low": 1, "patterns": ["full"], "size": [2, 3]}}})
    assert run.rl.hints == Hints(ratio_low=1.0, patterns=("full",), size=(2, 3.0))
    assert isinstance(run.rl.hints.ratio_low, float)
    assert isinstance(run.rl.hints.size[1], float)


def test_absent_fields_keep_their_defaults():
    assert settings.from_config_dict(Run, {}) == Run()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rl": {"hint": {}}}, ["config.rl.hint ", "did you mean 'hints'"]),
        ({"rl": {"hints": {"ratio_low": "0.2"}}}, ["config.rl.hints.ratio_low", "the text '0.2'", "number (float)"]),
        ({"rl": {"hints": {"ratio_low": True}}}, ["config.rl.hints.ratio_low", "True (bool)", "number (float)"]),
        ({"rl": {"hints": {"ratio_low": float("nan")}}}, ["config.rl.hints.ratio_low", "nan"]),
        ({"rl": {"hints": {"ratio_low": None}}}, ["config.rl.hints.ratio_low", "None", "number (float)"]),
        ({"rl": {"hints": {"chunk_min": 1.5}}}, ["config.rl.hints.chunk_min", "1.5 (float)", "whole number (int)"]),
        ({"rl": {"hints": {"chunk_min": True}}}, ["config.rl.hints.chunk_min", "True (bool)", "whole number (int)"]),
        ({"rl": {"keep": 1}}, ["config.rl.keep", "1 (int)", "True or False (bool)"]),
        ({"name": 3}, ["config.name", "3 (int)", "text (str)"]),
        ({"rl": {"hints": {"patterns": "chunks"}}}, ["config.rl.hints.patterns", "'chunks'", "tuple of text"]),
        ({"rl": {"hints": {"patterns": ["a", 2]}}}, ["config.rl.hints.patterns[1]", "2 (int)"]),
        ({"rl": {"hints": {"size": (1, 2.0, 3)}}}, ["config.rl.hints.size", "3 entries", "expected 2"]),
        ({"rl": 3}, ["config.rl is 3 (int)", "section", "hints, steps, keep"]),
        ({"name": {"a": 1}}, ["config.name", "section with the fields a"]),
        ({"limit": "4"}, ["config.limit", "the text '4'", "whole number (int) or None"]),
        ({"rl": {"hints": {"ratio_low": 1.5}}}, ["config.rl.hints: ratio_low is 1.5", "at most 1"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(config, words):
    for form in (config, ml_collections.ConfigDict(config)):
        with pytest.raises(UserError) as caught:
            settings.from_config_dict(Run, form)
        for word in words:
            assert word in str(caught.value)


def test_the_path_prefix_is_the_callers():
    with pytest.raises(UserError, match=r"run/config\.json\.rl\.step "):
        settings.from_json(Run, '{"rl": {"step": 1}}', "run/config.json")
    with pytest.raises(UserError, match=r"run/config\.json is not valid JSON"):
        settings.from_json(Run, '{"rl":', "run/config.json")


def test_changed_fields_lists_every_difference_and_nothing_else():
    assert settings.changed_fields(Run(), Run()) == []
    changed = settings.changed_fields(Run(), dataclasses.replace(Run(), name="grpo", rl=Rl(steps=4)))
    assert changed == [("name", "igpo", "grpo"), ("rl.steps", 3, 4)]


def test_changed_fields_compares_with_stored_settings():
    stored = json.loads(settings.to_json(CHANGED))
    assert settings.changed_fields(stored, CHANGED) == []
    assert settings.changed_fields(CHANGED, settings.to_config_dict(CHANGED)) == []
    del stored["rl"]["steps"]
    stored["old"] = 1
    assert settings.changed_fields(stored, CHANGED) == [
        ("rl.steps", settings.ABSENT, 9),
        ("old", 1, settings.ABSENT),
    ]


def test_the_hash_follows_every_field():
    hashes = {settings.config_hash(run) for run in (Run(), CHANGED, Run(pad_ids=(1,)), Run(limit=0))}
    assert len(hashes) == 4
    assert settings.config_hash(Run()) == settings.config_hash(settings.from_json(Run, settings.to_json(Run())))


def test_nearest_field_prefers_the_same_last_name():
    paths = settings.field_paths(settings.to_config_dict(Run()))
    assert "rl.hints.ratio_low" in paths
    assert "'rl.hints.ratio_low'" in settings.nearest_field("rl.hint.ratio_low", paths)
    assert "'rl.hints.ratio_low'" in settings.nearest_field("ratio_low", paths)
    assert "'rl.steps'" in settings.nearest_field("rl.step", paths)
    assert "choose one of" in settings.nearest_field("xyzzy", paths)


def test_describe_reads_types_defaults_and_comments():
    lines = settings.describe(Run, "config.").splitlines()
    assert lines[0] == "| field | type | default | meaning |"
    assert r"| `config.rl.hints.ratio_low` | float | `0.2` | lower end \| of the draw |" in lines
    assert "| `config.rl.hints.chunk_min` | int | `5` |  |" in lines
    assert any("('chunks', 'prefix')" in line and "Patterns in the order they are tried." in line for line in lines)
    assert any('a "#" in "text" is kept' in line for line in lines)
    assert any("int | None" in line.replace("\\", "") for line in lines)
    assert len(lines) == 2 + len(settings.field_paths(settings.to_config_dict(Run())))


def test_describe_takes_the_defaults_of_an_instance():
    assert "| `rl.steps` | int | `9` |" in settings.describe(CHANGED)


def test_the_projects_own_settings_are_documented_and_round_trip():
    from igpo_jax.training.optimizers import OptimizerSettings

    comments = settings.field_comments(OptimizerSettings)
    assert set(comments) == {field.name for field in dataclasses.fields(OptimizerSettings)}
    config = settings.to_config_dict(OptimizerSettings())
    assert settings.from_config_dict(OptimizerSettings, config) == OptimizerSettings()
