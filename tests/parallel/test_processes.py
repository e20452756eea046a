"""Two processes with two devices each: every process passes its rows and reads the whole result."""

import os
import pathlib
import socket
import subprocess
import sys

WORKER = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from igpo_jax.parallel import mesh, sharding
grid = mesh.make_mesh(mesh.MeshSettings(data=2, fsdp=2))
mine = np.arange(4, dtype=np.int32) + 4 * jax.process_index()
with jax.set_mesh(grid):
    rows = sharding.shard_batch(mine, grid)
    twice = jax.jit(lambda x: sharding.constrain(2 * x, ("batch",)))(rows)
    assert not twice.is_fully_addressable
    print(sharding.to_host(twice).tolist())
    print(sharding.to_host(sharding.replicate(np.arange(3), grid)).tolist())
"""


def test_two_processes_make_one_batch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(process)], env=env, stdout=subprocess.PIPE, text=True
        )
        for process in range(2)
    ]
    try:
        for worker in workers:
            out, _ = worker.communicate(timeout=90)
            assert worker.returncode == 0
            # The collective library prints lines of its own in between.
            assert [line for line in out.splitlines() if line.startswith("[0")] == [
                "[0, 2, 4, 6, 8, 10, 12, 14]",
                "[0, 1, 2]",
            ]
    finally:
        for worker in workers:
            worker.kill()
