"""A run that is killed while it writes continues bit for bit from its last whole checkpoint."""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from igpo_jax.training.checkpoints import Checkpoints, CheckpointSettings

folder, total = sys.argv[1], int(sys.argv[2])
state = {"w": jax.random.normal(jax.random.key(0), (256, 256)), "key": jax.random.key(1)}

@jax.jit
def update(state):
    key, draw = jax.random.split(state["key"])
    return {"w": jnp.sin(state["w"] * 1.1) + jax.random.normal(draw, state["w"].shape), "key": key}

with Checkpoints(folder, CheckpointSettings(every=1, keep_last=3)) as checkpoints:
    found = checkpoints.restore(state)
    start, state = (found[0], found[1]) if found else (0, state)
    print("from", start, flush=True)
    for step in range(start, total):
        state = update(state)
        checkpoints.save(step + 1, state)
        print("step", step + 1, flush=True)
print("sum", jax.random.key_data(state["key"]).tolist(), repr(state["w"].sum().item()), repr(state["w"][3, 5].item()))
"""


def start_program(tmp_path, folder, total):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(path), str(folder), str(total)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    victim = start_program(tmp_path, tmp_path / "killed", 1_000_000)
    for line in victim.stdout:
        if line.startswith("step") and int(line.split()[1]) >= 5:
            break
    # The next save is somewhere between its first byte and its last.
    time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    last = max(int(path.name) for path in (tmp_path / "killed").iterdir() if path.name.isdigit())
    assert last >= 4
    runs = [start_program(tmp_path, tmp_path / name, last + 3) for name in ("killed", "whole")]
    resumed, whole = (run.communicate(timeout=60)[0].splitlines() for run in runs)
    assert (resumed[0], whole[0]) == (f"from {last}", "from 0")
    assert resumed[-1].startswith("sum")
    assert resumed[-1] == whole[-1]
