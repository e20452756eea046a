"""Saved rollouts in the page: packed without loss, bounded by whole groups, damaged lines named."""

import json

import pytest

from igpo_jax.errors import UserError
from igpo_jax.reporting import runs, samples
from tests.reporting import cases


def load(folder, most=100):
    return samples.load(runs.open_runs([folder]), most)


@pytest.fixture()
def folder(tmp_path):
    return cases.make_run(tmp_path / "run")


def unpacked(data, number=0):
    """A packed row as the page takes it apart."""
    row = data["rows"][number]
    pieces = [data["pieces"][int(n)] for n in row[10].split()]
    reveal, dropped = ([int(n) for n in row[place].split()] for place in (11, 12))
    flags = {name for bit, name in enumerate(data["flags"]) if row[4] >> bit & 1}
    return pieces, reveal, dropped, flags, data["questions"][row[3]], data["reasons"][row[9]]


def test_a_row_comes_back(folder):
    cases.save_rollouts(folder, [cases.row(truncated=True, all_wrong=True)])
    data, remarks = load(folder)
    assert remarks == [] and data["total"] == 1 and data["files"] == [[0, "igpo", 10]]
    pieces, reveal, dropped, flags, question, reason = unpacked(data)
    assert (pieces, reveal, dropped) == (["spends", " ten", ""], [-1, 1, 0], [0])
    assert flags == {"truncated", "all_wrong", "hinted"}
    assert question == ("q-1", "Mia has 427 euros.", "437", "finds ten 437") and reason == "different numbers"
    assert data["rows"][0][:3] == [0, 0, 0] and data["rows"][0][5:9] == [0.0, -0.5, 0.4, "427"]


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"correct": True}, {"correct", "hinted"}),
        ({"answer": None}, {"no_answer", "hinted"}),
        ({"rescued": True, "replaced": True}, {"rescued", "replaced", "hinted"}),
        ({"learnt_from": False, "advantage": None, "kept": None}, {"unused", "hinted"}),
        ({"hinted": [0, 0, 0]}, set()),
    ],
)
def test_flags(folder, fields, flags):
    cases.save_rollouts(folder, [cases.row(**fields)])
    assert unpacked(load(folder)[0])[3] == flags


def test_older_logs_have_their_flags_from_other_fields(folder):
    old = cases.row(round="second", pieces=["spends", "ten", "4"])
    for name in ("replaced", "truncated", "all_wrong", "rescued", "timed_out", "step"):
        del old[name]
    cases.save_rollouts(folder, [old])
    assert unpacked(load(folder)[0])[3] == {"hinted", "replaced", "truncated"}


def test_what_a_model_wrote_is_made_printable(folder):
    cases.save_rollouts(folder, [cases.row(pieces=[cases.HOSTILE, "\ud800", ""], answer=cases.HOSTILE, reason="\x07")])
    data, _ = load(folder)
    texts = json.dumps(data, ensure_ascii=False)
    assert not set("\x1b\x07\u202e\ud800") & set(texts) and "\\\\x1b[31m" in texts


def test_the_bound_takes_whole_groups_from_every_file(folder):
    for step in (10, 20):
        cases.save_rollouts(folder, [cases.row(group=n // 4) for n in range(20)], step)
    data, _ = load(folder, most=25)
    assert data["total"] == 40
    assert [row[:3] for row in data["rows"]] == [
        [file, group, n] for file in (0, 1) for group in range(3) for n in range(4)
    ]
    assert len(load(folder, most=40)[0]["rows"]) == 40 and load(folder, most=0)[0]["rows"] == []
    data, _ = load(folder, most=31)
    assert len(data["rows"]) == 24, "the fourth group of one file alone is not taken"
    with pytest.raises(UserError, match="--rollouts is -1"):
        load(folder, most=-1)


def test_where_not_every_file_fits_some_are_taken_evenly(folder):
    for step in range(10, 60, 10):
        cases.save_rollouts(folder, [cases.row(group=n // 4) for n in range(8)], step)
    for most, steps in ((19, [10, 20, 40, 50]), (12, [10, 30, 50]), (8, [10, 50]), (4, [10]), (3, [])):
        data, _ = load(folder, most)
        assert [step for _, _, step in data["files"]] == steps and len(data["rows"]) == 4 * len(steps)


def test_damaged_lines_are_named_once_a_file(folder):
    path = cases.save_rollouts(folder, [cases.row(), cases.row(), cases.row(pieces=["one"])])
    path.write_text(path.read_text() + "[]\n" + json.dumps(cases.row())[:50])
    data, remarks = load(folder)
    assert len(data["rows"]) == 2
    assert remarks == [
        f"{path} line 3, and 2 more lines, are left out: pieces, hinted and reveal_step differ in length"
    ]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"reason": 3}, "no text 'reason'"),
        ({"group": "a"}, "no int 'group'"),
        ({"pieces": None}, "no list 'pieces'"),
        ({"pieces": [1, 2, 3]}, "a piece is not a text"),
        ({"reveal_step": [0, 1, "x"]}, "'reveal_step' holds something"),
        ({"kept": 3}, "'kept' holds something"),
    ],
)
def test_what_is_no_saved_rollout_is_named(folder, fields, problem):
    path = cases.save_rollouts(folder, [cases.row(**fields), cases.row()])
    data, (remark,) = load(folder)
    assert len(data["rows"]) == 1 and remark.startswith(f"{path} line 1 is left out") and problem in remark


def test_a_file_that_cannot_be_opened(folder):
    (folder / "rollouts" / "igpo_000010.jsonl").mkdir(parents=True)
    data, (remark,) = load(folder)
    assert data["rows"] == [] and "cannot be read" in remark
