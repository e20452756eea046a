"""Two processes with two devices each train like one with four; checkpoints fit either; nobody waits for the dead."""

import json
import re
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.parallel.processes import HEARTBEAT_SECONDS
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.metrics import is_wall_clock, read_metrics
from tests.training.pair_cases import Group, get_config

pytestmark = pytest.mark.slow

#: Sums over devices that lie in two processes are made in another order.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def pair(cache, tmp_path_factory):
    """The run directory of two processes with two devices each, and what they said."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    group = Group(workdir, cache, 2, 2)
    assert group.finish() == [0, 0], group.said(0) + group.said(1)
    return workdir, group


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """The same run as one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    group = Group(workdir, cache, 1, 4)
    assert group.finish() == [0], group.said(0)
    return workdir


#: They count programs, and the rows of two processes are packed into other ones.
PACKING = ("rollout_forwards", "second_forwards")


def rows_of(workdir):
    rows = [
        (
            row.stage,
            row.step,
            {name: value for name, value in row.values.items() if not is_wall_clock(name) and name not in PACKING},
        )
        for row in read_metrics(workdir)
    ]
    # A run that goes on appends what it does again.
    return sorted(rows, key=lambda row: row[:2])


def rollouts_of(workdir, step):
    lines = (workdir / "rollouts" / f"igpo_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def state_of(workdir, step, mesh=None):
    """The saved parameters of RL by path, read onto one device or onto ``mesh``."""
    with Checkpoints(workdir / "checkpoints" / "igpo", read_only=True) as checkpoints:
        tree = checkpoints._manager.item_metadata(step)["state"].tree
        config = llada.ModelConfig.from_hf(json.loads((workdir / "model_config.json").read_text()), "model_config.json")
        like = {"trainable": llada.abstract(config, np.float32, mesh)} if mesh else tree_like(tree)
        found = checkpoints.restore(like, step=step, subset=True)
    return jax.tree.map(np.asarray, found[1]["trainable"])


def tree_like(tree):
    nested = {}
    for path, leaf in tree.items():
        if path.startswith("trainable/"):
            *folders, name = path.split("/")
            place = nested
            for folder in folders:
                place = place.setdefault(folder, {})
            place[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return nested


def assert_same_run(one, other):
    """Rows within the tolerance, sampled completions to the token, parameters within the tolerance."""
    mine, yours = rows_of(one), rows_of(other)
    assert [row[:2] for row in mine] == [row[:2] for row in yours]
    for (stage, step, values), (_, _, expected) in zip(mine, yours, strict=True):
        assert values.keys() == expected.keys()
        for name, value in values.items():
            np.testing.assert_allclose(
                value, expected[name], atol=TOLERANCE, rtol=1e-5, err_msg=f"{stage} {step} {name}"
            )
    for step in (1, 2):
        assert rollouts_of(one, step) == rollouts_of(other, step) or same_tokens(one, other, step)
    for path, (a, b) in paired(state_of(one, 2), state_of(other, 2)):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0, err_msg=path)


def same_tokens(one, other, step):
    exact = ("id", "group", "completion", "pieces", "hinted", "reveal_step", "correct", "replaced", "learnt_from")
    for mine, yours in zip(rollouts_of(one, step), rollouts_of(other, step), strict=True):
        assert {name: mine[name] for name in exact} == {name: yours[name] for name in exact}
    return True


def paired(one, other):
    return [
        (jax.tree_util.keystr(path), (a, b))
        for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True)
    ]


def test_two_processes_learn_what_one_learns(pair, alone):
    workdir, _ = pair
    assert_same_run(workdir, alone)
    values = {name: value for _, _, row in rows_of(workdir) for name, value in row.items()}
    assert values["replaced_rows"] > 0 and values["loss"] != 0, "there is something to compare"
    mine, yours = (json.loads((path / "summary.json").read_text()) for path in (workdir, alone))
    for one, other in zip(mine, yours, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_only_the_main_process_speaks(pair):
    _, group = pair
    assert "4 cpu devices in 2 processes" in group.said(0)
    assert "igpo" in group.said(0) and "time in" in group.said(0)
    assert group.said(1) == ""


def test_a_checkpoint_of_two_processes_is_read_onto_another_mesh(pair):
    """Eight devices of this one process, parameters split over four."""
    workdir, _ = pair
    plain = state_of(workdir, 2)
    split = state_of(workdir, 2, make_mesh(MeshSettings(2, 4, 1)))
    for path, (a, b) in paired(split, plain):
        np.testing.assert_array_equal(a, b, err_msg=path)


def without_the_last_step(workdir, target):
    """A copy of a run as it would be had it been killed after its first outer step was saved."""
    shutil.copytree(workdir, target)
    shutil.rmtree(target / "checkpoints" / "igpo" / "2")
    (target / "evaluations" / "igpo.json").unlink()
    return target


def test_a_run_of_two_processes_goes_on_in_one(pair, cache, tmp_path):
    workdir, _ = pair
    copy = without_the_last_step(workdir, tmp_path / "run")
    group = Group(copy, cache, 1, 4, "--allow-other-devices")
    assert group.finish() == [0], group.said(0)
    assert_same_run(copy, workdir)


def test_a_run_of_one_process_goes_on_in_two(alone, cache, tmp_path):
    copy = without_the_last_step(alone, tmp_path / "run")
    group = Group(copy, cache, 2, 2, "--allow-other-devices")
    assert group.finish() == [0, 0], group.said(0) + group.said(1)
    assert_same_run(copy, alone)


def test_a_killed_process_ends_the_others(cache, tmp_path):
    workdir = tmp_path / "run"
    endless = ("--config.sft.steps=100000", "--config.rl.steps=0", "--config.checkpoints.every=0")
    group = Group(workdir, cache, 2, 2, *endless)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and not any(row.stage == "sft" for row in read_metrics(workdir)):
        time.sleep(0.2)
    group.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert group.finish(patience=HEARTBEAT_SECONDS + 60) == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 120
    assert [line for line in group.said(0).splitlines() if line.startswith("error:")] == [
        "error: process 1 of 2 was lost; process 0 leaves too: start all of them again with the same command"
    ]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_write_that_breaks_off_on_one_process_keeps_nobody_waiting(cache, tmp_path, broken):
    """Orbax lets the others wait twenty minutes for the part that never comes."""
    workdir = tmp_path / "run"
    endless = ("--config.sft.steps=100000", "--config.rl.steps=0", "--config.checkpoints.every=20")
    group = Group(workdir, cache, 2, 2, *endless)
    saved, deadline = workdir / "checkpoints" / "sft", time.monotonic() + 900
    while time.monotonic() < deadline and not (saved / "20").exists():
        time.sleep(0.05)
    resource.prlimit(group.processes[broken].pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    began = time.monotonic()
    codes = group.finish(patience=300)
    assert codes[broken] == 2 and codes[1 - broken] == 1
    assert time.monotonic() - began < 120
    (said,) = [line for line in group.said(broken).splitlines() if line.startswith("error:")]
    assert re.search(r"checkpoint of step \d+ could not be written .*; the checkpoints before it are intact", said)
    assert (saved / "20").exists()


def test_groups_that_would_straddle_processes_are_refused():
    settings = get_config()
    settings.check_groups(4)
    with pytest.raises(UserError, match=r"rl\.rollout\.groups is 4, which does not divide over 3 processes"):
        settings.check_groups(3)
