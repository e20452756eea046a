"""Every config file and variant loads, has the paper's numbers, divides over its devices, and starts as it says."""

import functools
import importlib
import itertools
import pathlib
import re
import shlex

import pytest

from igpo_jax import cli, settings
from igpo_jax.errors import UserError
from igpo_jax.training.optimizers import make_schedule
from igpo_jax.training.run_settings import RunSettings

ROOT = pathlib.Path(__file__).parents[1]
LLADA = ("sft", "igpo", "grpo")
FILES = [path for path in sorted((ROOT / "configs").rglob("*.py")) if "def get_config" in path.read_text()]


@functools.cache
def load(name: str, variant: str = "") -> RunSettings:
    location = ROOT / "configs" / "llada_8b" / f"{name}.py"
    return settings.from_config_dict(
        RunSettings, cli.load_config(f"{location}:{variant}" if variant else str(location))
    )


def kinds(name: str) -> dict[str, tuple[str, ...]]:
    return importlib.import_module(f"configs.llada_8b.{name}").VARIANTS


def variants(name: str) -> list[str]:
    """Each word alone, and every hardware with one word of each other kind."""
    words = list(itertools.chain(*kinds(name).values()))
    others = [choices[1] for kind, choices in kinds(name).items() if kind != "hardware"]
    return [*words, *(",".join([hardware, *others]) for hardware in kinds(name)["hardware"])]


@pytest.mark.parametrize("name", LLADA)
def test_every_variant_loads_and_divides_over_its_devices(name):
    common = importlib.import_module("configs.llada_8b.common")
    for variant in variants(name):
        found = load(name, variant)
        hardware = next((w for w in variant.split(",") if w in kinds(name)["hardware"]), "tpu")
        devices = common.hardware(hardware).devices
        assert found.mesh.data * found.mesh.fsdp * found.mesh.tensor == devices, variant
        found.check_shards(devices)
        assert found.compute.dtype == "bfloat16" and found.model.shape == "llada_8b"


def test_words_of_a_name_with_a_number_are_that_many_devices():
    common = importlib.import_module("configs.llada_8b.common")
    assert all(int(word.rpartition("-")[2]) == layout.devices for word, layout in common.HARDWARE.items())


def test_igpo_has_the_numbers_of_table_2():
    found = load("igpo")
    rl, sampler = found.rl, found.sampler
    assert (sampler.length, sampler.steps, sampler.block_length, sampler.temperature) == (256, 128, 32, 1.2)
    assert (rl.rollout.groups * rl.rollout.group_size, rl.rollout.group_size, rl.inner_updates) == (512, 8, 4)
    assert (rl.rollout.replace_fraction, rl.rollout.second_batch) == (0.5, "inpaint")
    assert (rl.hints.ratio_low, rl.hints.ratio_high, rl.hints.chunk_min, rl.hints.chunk_max) == (0.2, 0.6, 5, 10)
    assert (rl.objective.entropy_top, rl.objective.kl_coef, rl.objective.clip_low) == (0.2, 0.01, 0.2)
    assert (rl.optimizer.learning_rate, rl.optimizer.warmup_steps, rl.optimizer.weight_decay) == (5e-7, 50, 0.1)
    assert rl.lora.rank == 0


def test_igpo_stops_at_1440_updates_of_a_decay_over_8000():
    rl = load("igpo").rl
    assert (rl.updates, rl.optimizer.horizon) == (1440, 8000)
    rate = make_schedule(rl.optimizer, rl.updates)
    assert float(rate(1440)) / rl.optimizer.learning_rate == pytest.approx(0.825, abs=0.001)
    assert float(rate(8000)) == 0.0


def test_sft_has_the_numbers_of_table_2():
    sft = load("sft").sft
    assert (sft.batch_size, sft.epochs, sft.steps, sft.completion_length) == (2048, 100.0, 4590, 1024)
    assert (sft.optimizer.learning_rate, sft.optimizer.final_learning_rate) == (5e-6, 1e-6)
    assert (sft.optimizer.schedule, sft.optimizer.warmup_steps, sft.optimizer.decay_fraction) == ("wsd", 200, 0.1)


def test_sft_on_original_traces_cuts_at_the_context_of_4096():
    found = load("sft", "h100,original")
    assert found.prompt_length + found.sft.completion_length == 4096 and found.sft.long_completions == "cut"
    assert found.data.name == "openr1" and load("sft").data.name == "jsonl"


def test_ablations_change_only_what_they_name():
    plain = load("igpo", "h100")
    for word, fields in {
        "eta0.4": {"rl.hints.ratio_low": 0.4, "rl.hints.ratio_high": 0.4},
        "eta1.0": {"rl.hints.ratio_low": 1.0, "rl.hints.ratio_high": 1.0},
        "tau0.5": {"rl.objective.entropy_top": 0.5},
        "tau1.0": {"rl.objective.entropy_top": 1.0},
        "lora": {"rl.lora.rank": 128},
        "from_sft": {"model.checkpoint": "runs/llada_8b_sft"},
    }.items():
        changed = settings.changed_fields(settings.to_config_dict(plain).to_dict(), load("igpo", f"h100,{word}"))
        assert {path: after for path, _, after in changed} == fields


def test_grpo_is_igpo_without_hints():
    for word, second in {"once": "none", "size_matched": "plain"}.items():
        changed = settings.changed_fields(settings.to_config_dict(load("igpo")).to_dict(), load("grpo", word))
        assert {path: after for path, _, after in changed} == {"name": "grpo", "rl.rollout.second_batch": second}


def test_baselines_change_the_likelihood_and_the_objective_alone():
    plain = settings.to_config_dict(load("grpo")).to_dict()
    for word, fields in {
        "diffugrpo": {
            "name": "diffugrpo",
            "rl.estimator": "prompt_masking",
            "rl.objective.ratio": "token",
            "rl.objective.clip_low": 0.5,
            "rl.objective.clip_high": 0.5,
            "rl.objective.kl_coef": 0.04,
            "rl.objective.aggregation": "token_pool",
            "rl.objective.kl_on_zero_spread": True,
        },
        "unigrpo": {"name": "unigrpo", "rl.estimator": "structured_noising", "rl.objective.ratio": "token"},
    }.items():
        changed = settings.changed_fields(plain, load("grpo", word))
        assert {path: after for path, _, after in changed} == fields


def test_lora_trains_all_seven_layers_and_official_the_four_of_the_released_code():
    assert len(load("igpo", "lora").rl.lora.layers) == 7
    whole = load("igpo", "lora,official")
    found = whole.rl
    assert whole.template == "official" and load("igpo", "lora").template == "paper"
    assert found.lora.layers == ("q_proj", "k_proj", "v_proj", "up_proj") and found.hints.placement == "official"


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ("h100,tpu", "has both 'h100' and 'tpu'"),
        ("h100,eta0.3", "the config's variant is 'eta0.3'"),
        ("h200", "'h200'"),
    ],
)
def test_bad_variants_end_with_one_sentence(variant, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        load("igpo", variant)


def commands() -> list[tuple[str, list[str]]]:
    """(file, argv) of every launch command in a config's docstring."""
    return [
        (path.name, ["train", *shlex.split(line, comments=True)[3:]])
        for path in FILES
        for line in re.findall(r"^ +(python -m igpo_jax\.train .*)$", path.read_text(), re.MULTILINE)
    ]


def test_every_config_says_how_it_is_launched():
    assert len(FILES) >= 5 and {name for name, _ in commands()} == {path.name for path in FILES}


@pytest.mark.parametrize(("name", "argv"), commands())
def test_every_launch_command_is_accepted(name, argv, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    built = []
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda command: built.append(settings.from_config_dict(RunSettings, command.config)), argv)
    assert stop.value.code == 0, capsys.readouterr().err
    assert len(built) == 1, name
