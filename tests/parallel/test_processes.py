"""Two processes with two devices each: every process passes its rows and reads the whole result."""

import json
import os
import pathlib
import socket
import subprocess
import sys

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


def test_two_processes_make_one_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
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
