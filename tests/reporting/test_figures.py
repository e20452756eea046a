"""Curves of the page: seeds as bands, evaluations on one axis, gaps where nothing finite was logged."""

import json

import pytest

from igpo_jax.reporting import figures, groups, runs, tables
from tests.reporting import cases


def drawn(*places):
    return {figure["name"]: figure for figure in figures.figures(groups.group_runs(runs.open_runs(places)))}


def test_one_run_has_a_series_for_each_metric(tmp_path):
    found = drawn(cases.make_run(tmp_path / "run"))
    before, after = found["all_wrong"]["series"]
    assert before["y"] == [40.0] * 5 and after["y"] == [20.0] * 5 and found["all_wrong"]["percent"]
    assert (before["label"], before["x"], before["group"]) == ("before the second batch", [1, 2, 3, 4, 5], 0)
    assert found["hint_ratio"]["series"][0]["x"] == [2, 3, 4, 5]
    assert found["sft_loss"]["xlabel"] == "update" and "time" not in found and "clip_fraction" not in found


def test_seeds_become_a_mean_and_a_band(tmp_path):
    places = [
        cases.make_run(tmp_path / f"s{seed}", seed=seed, shift=shift) for seed, shift in ((0, 0.0), (1, 0.1), (2, 0.5))
    ]
    (series,) = drawn(*places)["reward"]["series"]
    assert series["low"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert series["high"] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert series["y"] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])


def test_a_seed_that_is_not_as_far_counts_where_it_is(tmp_path):
    places = [cases.make_run(tmp_path / f"s{seed}", seed=seed, shift=0.2 * seed, steps=5 - 2 * seed) for seed in (0, 1)]
    (series,) = drawn(*places)["reward"]["series"]
    assert series["x"] == [1, 2, 3, 4, 5]
    assert series["y"] == pytest.approx([0.2, 0.3, 0.4, 0.4, 0.5])


def test_groups_are_overlaid(tmp_path):
    found = drawn(cases.make_run(tmp_path / "igpo"), cases.make_run(tmp_path / "grpo", name="grpo", shift=0.1))
    assert [(series["group"], series["y"][0]) for series in found["reward"]["series"]] == [(0, 0.1), (1, 0.2)]
    evaluation = found["evaluation"]
    assert evaluation["ticks"] == ["start", "sft", "RL"]
    assert [series["x"] for series in evaluation["series"]] == [[0, 1, 2]] * 2


def test_a_single_run_shows_the_interval_of_its_evaluations(tmp_path):
    evaluation = drawn(cases.make_run(tmp_path / "run"))["evaluation"]
    assert evaluation["ticks"] == ["start", "sft", "igpo"]
    (series,) = evaluation["series"]
    assert series["y"] == pytest.approx([10, 30, 50]) and series["low"] == pytest.approx([5, 25, 45])


def test_evaluations_that_one_run_has_between_two_stay_between():
    assert figures._merged([["start", "sft", "RL"], ["start", "sft", "RL 25", "RL"], ["RL 10"]]) == [
        "RL 10",
        "start",
        "sft",
        "RL 25",
        "RL",
    ]


def test_long_curves_are_thinned(tmp_path):
    (series,) = drawn(cases.make_run(tmp_path / "run", steps=1200))["reward"]["series"]
    assert len(series["x"]) == len(series["y"]) == 400
    assert series["x"][:2] == [2, 5] and series["y"][:2] == pytest.approx([0.2, 0.5])


def test_stage_table_of_seeds(tmp_path):
    places = [cases.make_run(tmp_path / f"s{seed}", seed=seed, shift=0.2 * seed) for seed in (0, 1)]
    markup = tables.stage_table(groups.group_runs(runs.open_runs(places)))
    assert markup.count("mean of 2 seeds") == 3
    assert "<td>60.0%</td><td>50.0 to 70.0 (seeds)</td>" in markup
    assert "<td>50.0%</td><td>45.0 to 55.0</td>" in markup


def test_phases_add_up_and_what_passes_within_them_does_not(tmp_path):
    (run,) = runs.open_runs([cases.make_run(tmp_path / "run")])
    assert tables.phase_times(run) == {"igpo": {"rollout": 15.0, "update": 5.0, "judge": 2.5}}
    markup = tables.time_tables([run])
    assert "sampling, plain round</td><td>15s</td><td>3.0s</td><td>75%" in markup
    assert "judging (beside the sampling)</td><td>2.5s</td><td>500 ms</td><td>within" in markup
    assert "together</td><td>20s" in markup


def test_the_protocol_is_said(tmp_path):
    (run,) = runs.open_runs([cases.make_run(tmp_path / "run", seed=7)])
    assert tables.protocol(run) == "40 held-out questions, 4 cpu devices, jax 0.10.2, seed 7"


def test_odd_configurations_do_no_harm(tmp_path):
    folder = cases.make_run(tmp_path / "run")
    odd = {
        "sampler": [],
        "evaluation": {"samples": 2},
        "judge": 3,
        "compute": {"dtype": None},
        "seed": [1],
        "template": {},
    }
    (folder / "config.json").write_text(json.dumps(odd))
    (folder / "environment.json").write_text('{"devices": "many"}')
    (folder / "evaluations" / "sft.json").write_text(
        '{"pass_at_1": 0.5, "seconds": "long", "questions": NaN, "step": []}'
    )
    found = runs.open_runs([folder])
    assert tables.protocol(found[0]) == "40 held-out questions, 2 samples each, template {}, compute in None, seed [1]"
    assert "<td>sft</td><td></td><td>50.0%</td>" in tables.stage_table(groups.group_runs(found))
