"""Folders of runs: what is damaged is named, the rest is used; what is no run is refused in one sentence."""

import json

import pytest

from igpo_jax.errors import UserError
from igpo_jax.reporting import groups, runs
from tests.reporting import cases


def test_a_run_is_read_whole(tmp_path):
    (run,) = runs.open_runs([cases.make_run(tmp_path / "first", seed=4)])
    assert (run.label, run.seed, run.remarks, run.health) == ("first", 4, [], [])
    assert [row["stage"] for row in run.evaluations] == ["start", "sft", "igpo"]
    assert len(run.rows) == 11 and run.facts["devices"] == 4


def test_labels_tell_runs_apart(tmp_path):
    places = [cases.make_run(tmp_path / part / "run") for part in ("a", "b")]
    assert [run.label for run in runs.open_runs(places)] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("none", "none does not exist; expected the folder that --workdir"),
        ("file", "file is a file; expected the folder"),
        ("above", r"above has no metrics.jsonl, .* did you mean one of the runs in it: one, two\?"),
        ("fresh", r"fresh/metrics.jsonl has no row that can be read; wait"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, place, sentence):
    (tmp_path / "file").write_text("")
    for name in ("above/one", "above/two", "fresh"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=sentence):
        runs.open_runs([tmp_path / place])


def test_one_run_named_twice(tmp_path):
    cases.make_run(tmp_path / "run")
    with pytest.raises(UserError, match="named twice"):
        runs.open_runs([tmp_path / "run", tmp_path / "other" / ".." / "run"])


def test_a_metrics_file_cut_in_the_middle_of_a_line(tmp_path):
    path = cases.make_run(tmp_path / "run") / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (run,) = runs.open_runs([tmp_path / "run"])
    assert len(run.rows) == 10
    assert run.remarks == [f"{path} line 11 is not a whole row and is left out (it was cut while it was written)"]


def test_a_damaged_line_in_the_middle(tmp_path):
    path = cases.make_run(tmp_path / "run") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"stage": "sft", "st', "[1]", '{"stage": 1, "step": 2, "time": 3}']) + "\n")
    path.write_text(path.read_text() + "\n".join(lines[6:]) + "\n")
    (run,) = runs.open_runs([tmp_path / "run"])
    assert len(run.rows) == 8
    assert [remark.split(" line ")[1][:2] for remark in run.remarks] == ["4 ", "5 ", "6 "]


def test_damaged_side_files_are_named_and_passed_over(tmp_path):
    folder = cases.make_run(tmp_path / "run")
    (folder / "config.json").write_text("{")
    (folder / "environment.json").write_text("[]")
    (folder / "evaluations" / "sft.json").write_text('{"stage": "sft"}')
    event = {"stage": "igpo", "step": 3, "signature": "all_wrong", "value": 0.5, "advice": "raise the ratio"}
    (folder / "health.jsonl").write_text(json.dumps(event) + '\n{"stage": "igpo"}\nnot json\n')
    (run,) = runs.open_runs([folder])
    assert [row["stage"] for row in run.evaluations] == ["start", "igpo"]
    assert run.config == {} == run.facts and run.health == [
        {name: value for name, value in event.items() if name != "value"}
    ]
    assert len(run.remarks) == 5 and all(str(folder) in remark for remark in run.remarks)


def labels(places):
    return [group.label for group in groups.group_runs(runs.open_runs(places))]


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    one, two = (cases.make_run(tmp_path / f"igpo_{seed}", seed=seed) for seed in (0, 1))
    other = cases.make_run(tmp_path / "grpo", name="grpo")
    again = cases.make_run(tmp_path / "again", seed=0)
    # cases.make_run gives every seed a mesh of its own: the layout makes no other experiment.
    assert labels([one, other, two]) == ["igpo_0 (2 seeds)", "grpo"]
    assert labels([one, again]) == ["igpo_0", "again"]


def test_what_settings_differ(tmp_path):
    one, two = cases.make_run(tmp_path / "igpo"), cases.make_run(tmp_path / "grpo", name="grpo", seed=3)
    found = groups.group_runs(runs.open_runs([one, two]))
    assert groups.different_settings(found) == [("name", ["igpo", "grpo"]), ("seed", [0, 3])]


def test_a_field_that_an_older_run_lacks_counts_as_its_default(tmp_path):
    one, two = cases.make_run(tmp_path / "old"), cases.make_run(tmp_path / "new", seed=1)
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(config | {"template": "plain"}))
    assert labels([one, two]) == ["old (2 seeds)"]
    (two / "config.json").write_text(json.dumps(config | {"template": "boxed"}))
    assert groups.different_settings(groups.group_runs(runs.open_runs([one, two]))) == [
        ("seed", [0, 1]),
        ("template", ["(absent)", "boxed"]),
    ]


def test_metrics_that_one_run_lacks(tmp_path):
    one, two = cases.make_run(tmp_path / "igpo"), cases.make_run(tmp_path / "grpo", name="grpo")
    path = two / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for name in ("hint_ratio", "kl", "judge_seconds"):
            row.pop(name, None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert groups.missing_metrics(runs.open_runs([one, two])) == {"grpo": ["hint_ratio", "kl"]}
