"""The samples file after a kill at any byte: whole batches stay, the rest is cut off; foreign lines are refused."""

import json

import pytest

from igpo_jax.errors import UserError
from igpo_jax.evaluation.store import Store, read_samples
from tests.evaluation.records import sample

BATCHES = [[("sums", f"test-{n}", 0) for n in range(start, start + 3)] for start in (0, 3, 6)]


def filled(folder):
    store = Store(folder)
    store.begin({"seed": 0})
    for batch in BATCHES:
        store.append([sample(int(name[5:]), True) for _, name, _ in batch])
    return store


def test_a_kill_at_any_byte_leaves_whole_batches(tmp_path):
    store = filled(tmp_path / "out")
    whole = store.samples.read_bytes()
    line = len(whole) // 9
    for cut in [0, 1, line, 3 * line - 1, 3 * line, 3 * line + 1, 7 * line, len(whole) - 1, len(whole)]:
        store.samples.write_bytes(whole[:cut])
        assert store.finished(BATCHES) == cut // (3 * line)
        assert store.samples.read_bytes() == whole[: cut // (3 * line) * 3 * line]


def test_a_damaged_or_foreign_line_is_named(tmp_path):
    store = filled(tmp_path / "out")
    lines = store.samples.read_text().splitlines()
    store.samples.write_text("\n".join([*lines[:3], "{broken", *lines[4:]]) + "\n")
    with pytest.raises(UserError, match="line 4 is damaged"):
        store.finished(BATCHES)
    store.samples.write_text("\n".join([*lines[:4], lines[6], *lines[5:]]) + "\n")
    with pytest.raises(UserError, match="line 5 is not the sample that belongs there"):
        store.finished(BATCHES)


def test_another_protocol_is_refused_and_a_moved_checkpoint_is_not(tmp_path):
    store = Store(tmp_path / "out")
    store.begin({"seed": 0, "checkpoint": {"path": "a", "weights": "w"}})
    store.begin({"seed": 0, "checkpoint": {"path": "b", "weights": "w"}})
    with pytest.raises(UserError, match=r"checkpoint.weights 'w', but this one has 'v'"):
        store.begin({"seed": 0, "checkpoint": {"path": "a", "weights": "v"}})
    with pytest.raises(UserError, match="seed 0, but this one has 1"):
        store.begin({"seed": 1, "checkpoint": {"path": "a", "weights": "w"}})


def test_what_is_no_sample_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        read_samples(path)
    path.write_text(json.dumps(sample(1, True)) + "\n[1]\n")
    with pytest.raises(UserError, match="line 2 is no sample"):
        read_samples(path)
