"""Two processes with two devices each: rows, agreements and the end of the one when the other is lost."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

WORKER = """
import json, pathlib, sys
import jax, numpy as np
address, process, result = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, process)
from igpo_jax.parallel import mesh, sharding
grid = mesh.make_mesh(mesh.MeshSettings(data=2, fsdp=2))
mine = np.arange(4, dtype=np.int32) + 4 * process
with jax.set_mesh(grid):
    rows = sharding.shard_batch(mine, grid)
    twice = jax.jit(lambda x: sharding.constrain(2 * x, ("batch",)))(rows)
    assert not twice.is_fully_addressable
    same = sharding.replicate(np.arange(3), grid)
    result.write_text(json.dumps([sharding.to_host(twice).tolist(), sharding.to_host(same).tolist()]))
"""


AGREEING = """
import json, os, signal, sys, time
import jax, numpy as np
address, process, result, victim = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
jax.config.update("jax_num_cpu_devices", 2)
from igpo_jax.parallel import processes
assert processes.initialize(address, 2, process) == 2
with processes.together(address):
    with processes.main_first():
        found = os.path.exists(result)
        if processes.is_main():
            open(result, "w").close()
    said = {
        "first": found == bool(process),
        "rows": [processes.my_rows(6).start, processes.my_rows(6).stop],
        "exact": processes.gather(np.int64(2**40 + process)).tolist(),
        "joined": processes.gather_rows(np.float64([0.1, process])).tolist(),
        "values": processes.gather_values({"text": "\u00e9" * process}),
        "main": processes.from_main(lambda: process),
        "any": [processes.agree_any(process == 1), processes.agree_any(False)],
        "sum": processes.agree_sum(np.float64([0.25, process])).tolist(),
        "max": processes.agree_max(10 * process),
        "broadcast": processes.broadcast({"a": np.int64(process)})["a"].tolist(),
    }
    print(json.dumps(said), file=sys.stderr, flush=True)
    print("only the main process is heard")
    for turn in range(2000):
        processes.agree_any(False)
        if process == victim and turn == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
"""


def somewhere():
    """A free address on this machine, and the environment of a worker."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return address, os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}


def test_two_processes_make_one_batch(tmp_path):
    address, env = somewhere()
    results = [tmp_path / f"process{process}.json" for process in range(2)]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, address, str(process), str(result)], env=env)
        for process, result in enumerate(results)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for result in results:
        assert json.loads(result.read_text()) == [[0, 2, 4, 6, 8, 10, 12, 14], [0, 1, 2]]


@pytest.mark.parametrize("victim", [1, 0])
def test_processes_agree_and_leave_when_one_is_killed(tmp_path, victim):
    address, env = somewhere()
    result = tmp_path / "written_first"
    files = [tmp_path / f"said{process}" for process in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", AGREEING, address, str(process), str(result), str(victim)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=file.open("w"),
        )
        for process, file in enumerate(files)
    ]
    try:
        heard = [worker.communicate(timeout=300)[0].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    said = [next(json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")) for file in files]
    for process in range(2):
        assert said[process] == {
            "first": True,
            "rows": [3 * process, 3 * process + 3],
            "exact": [2**40, 2**40 + 1],
            "joined": [0.1, 0.0, 0.1, 1.0],
            "values": [{"text": ""}, {"text": "é"}],
            "main": 0,
            "any": [True, False],
            "sum": [0.5, 1.0],
            "max": 10,
            "broadcast": 0,
        }
    assert "only the main process is heard" not in heard[1]
    survivor = 1 - victim
    assert workers[victim].returncode == -signal.SIGKILL
    assert workers[survivor].returncode not in (0, None)
    last = files[survivor].read_text()
    ours = f"error: process {victim} of 2 was lost; process {survivor} leaves too: start all of them again"
    # Without its coordinator, jax may be the first to end a process.
    assert ours in last or (victim == 0 and "another task died" in last)
