"""On one process nothing is joined, agreed or gathered; addresses are checked before anything starts."""

import os
import signal
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.parallel import mesh, processes
from igpo_jax.training import stopping

NOWHERE = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS")


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed would have been asked, on a machine that belongs to no cluster."""
    for name in (*NOWHERE, *processes.VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
    return asked


def test_everything_is_immediate_on_one_process():
    assert processes.is_main()
    assert processes.my_rows(7) == slice(0, 7)
    assert processes.agree_any(True) is True and processes.agree_any(False) is False
    assert processes.agree_max(3) == 3
    rows = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert processes.agree_sum(rows).dtype == np.int64
    np.testing.assert_array_equal(processes.agree_sum(rows), rows)
    np.testing.assert_array_equal(processes.gather_rows(rows), rows)
    assert processes.gather_values({"a": [1, "é"]}) == [{"a": [1, "é"]}]
    np.testing.assert_array_equal(processes.broadcast({"x": rows})["x"], rows)
    with processes.main_first():
        pass
    with pytest.raises(ZeroDivisionError), processes.main_first():
        raise ZeroDivisionError


def test_rows_that_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert processes.my_rows(8) == slice(4, 6)
    with pytest.raises(UserError, match="6 rows do not divide over 4 processes"):
        processes.my_rows(6)


def test_a_single_process_joins_nobody(joined, monkeypatch):
    processes.initialize()
    processes.initialize("localhost:1234", 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.initialize()
    assert joined == []


def test_an_address_is_passed_on(joined):
    processes.initialize("localhost:1234", 2, 1)
    assert [(one["coordinator_address"], one["num_processes"], one["process_id"]) for one in joined] == [
        ("localhost:1234", 2, 1)
    ]
    assert joined[0]["heartbeat_timeout_seconds"] == processes.HEARTBEAT_SECONDS


def test_the_environment_stands_for_flags_that_were_not_given(joined, monkeypatch):
    monkeypatch.setenv("IGPO_COORDINATOR", "localhost:1234")
    monkeypatch.setenv("IGPO_PROCESSES", "4")
    monkeypatch.setenv("IGPO_PROCESS_ID", "0")
    processes.initialize(process_id=3)
    assert (joined[0]["num_processes"], joined[0]["process_id"]) == (4, 3)


@pytest.mark.parametrize(
    "cluster",
    [
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "slice-0:8080"},
    ],
)
def test_clusters_are_recognised(joined, monkeypatch, cluster):
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert len(joined) == 1 and "coordinator_address" not in joined[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("", 2, 1), r"has no address; add --coordinator=HOST:PORT"),
        (("localhost", 2, 1), r"--coordinator is 'localhost', expected HOST:PORT"),
        (("localhost:x", 2, 1), r"expected HOST:PORT"),
        (("localhost:1", 2, 2), r"expected a count of at least 1 and a number from 0 to count - 1"),
        (("localhost:1", 2, -1), r"--process-id=-1"),
        (("localhost:1", 0, 0), r"--processes=0"),
    ],
)
def test_what_does_not_fit_together_is_refused(joined, given, words):
    with pytest.raises(UserError, match=words):
        processes.initialize(*given)


def test_a_variable_that_is_no_number_is_refused(joined, monkeypatch):
    monkeypatch.setenv("IGPO_PROCESSES", "two")
    with pytest.raises(UserError, match="IGPO_PROCESSES is 'two', expected a whole number"):
        processes.initialize("localhost:1", 0, 0)


def test_a_meeting_that_fails_is_one_sentence(joined, monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: barrier\nmore lines")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"could not join at localhost:1 \(DEADLINE_EXCEEDED: barrier\)"):
        processes.initialize("localhost:1", 2, 0)


def test_a_process_that_waits_in_vain_leaves_with_one_sentence():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = "from igpo_jax.parallel import processes; processes.START_SECONDS = 1; processes.initialize(%r, 2, 0)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code % address], env=environment, capture_output=True, text=True)
    assert done.returncode == processes.TRY_AGAIN == stopping.EXIT_CODES[signal.SIGTERM]
    assert done.stderr.startswith("error: the other processes did not come within 1 seconds; start all of them again")
    assert done.stderr.count("\n") == 1


def grid(owners, tensor=1):
    """What a mesh looks like whose devices, row by row, belong to the processes ``owners``."""
    devices = np.array([types.SimpleNamespace(process_index=owner) for owner in owners], object)
    local = [device for device in devices if device.process_index == owners[0]]
    return types.SimpleNamespace(devices=devices, shape={"tensor": tensor}, local_devices=local)


def test_each_process_holds_whole_rows_and_as_many_as_any_other(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh.check_processes(grid([0, 0, 1, 1]))
    mesh.check_processes(grid([0, 1, 1, 0]))
    mesh.check_processes(grid([0, 0, 1, 1], tensor=2))
    with pytest.raises(
        UserError, match=r"mesh\.tensor is 2, which spreads one row over several processes of 2 devices"
    ):
        mesh.check_processes(grid([0, 1, 0, 1], tensor=2))
    with pytest.raises(UserError, match="unequal shares of the mesh"):
        mesh.check_processes(grid([0, 0, 0, 1]))
