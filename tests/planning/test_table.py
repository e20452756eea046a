"""The committed plans of LLaDA-8B belong to the configs as they are now."""

import importlib.util
import pathlib

import pytest

from igpo_jax import cli, settings
from igpo_jax.planning import record, topology
from igpo_jax.training.run_settings import RunSettings

ROOT = pathlib.Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = script("plan_table")


@pytest.mark.parametrize("cell", TABLE.CELLS)
def test_the_config_has_not_changed_since(cell, monkeypatch):
    """Where this fails, the table no longer speaks of its config: run python benchmarks/plan_table.py."""
    monkeypatch.chdir(ROOT)
    config, name = TABLE.CELLS[cell]
    run = settings.from_config_dict(RunSettings, cli.load_config(config))
    plan = record.read(TABLE.FOLDER / f"{cell}.json")
    assert plan["plan_hash"] == record.plan_hash(run)
    assert (plan["config"], plan["topology"], plan["devices"]) == (config, name, topology.parse(name).count)


@pytest.mark.parametrize("cell", TABLE.CELLS)
def test_every_plan_says_what_made_it_and_adds_up(cell):
    plan = record.read(TABLE.FOLDER / f"{cell}.json")
    assert plan["parameters"] == 8_015_581_184
    assert plan["versions"]["jax"] and "not installed" not in plan["versions"].values()
    assert plan["fits"] and all(program["fits"] for program in plan["programs"])
    for program in plan["programs"]:
        if program["memory"]:
            kinds = ("arguments", "temporaries", "outputs", "beside")
            assert program["needed"] == pytest.approx(sum(program["memory"][kind] for kind in kinds))
        assert program["fits"] == (program["headroom"] is not None and program["headroom"] >= 0)


def test_the_page_shows_the_table():
    """docs/scaling.md holds what python benchmarks/plan_table.py --show prints."""
    assert TABLE.report.table(TABLE.rows()) in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("hardware", TABLE.TOPOLOGIES)
@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("variant", ["grpo.py:{}", "igpo.py:{},from_sft", "igpo.py:{},eta0.4", "igpo.py:{},tau0.8"])
def test_what_is_planned_once_compiles_the_same(variant, trained, hardware, monkeypatch):
    """GRPO and the variants of start, hints and filter differ in nothing that decides a plan."""
    monkeypatch.chdir(ROOT)
    config = cli.load_config("configs/llada_8b/" + variant.format(f"{hardware},{trained}"))
    plan = record.read(TABLE.FOLDER / f"igpo_{hardware}_{trained}.json")
    assert record.plan_hash(settings.from_config_dict(RunSettings, config)) == plan["plan_hash"]
