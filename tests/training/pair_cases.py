"""The training command as one process or as several on this machine, with luck for a judge; also its config file.

Run as a module it is ``python -m igpo_jax.train`` with another judge.
"""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

from igpo_jax import cli, train
from igpo_jax.parallel.mesh import MeshSettings
from igpo_jax.rewards import pool
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.run_settings import RunSettings
from tests.training import tiny
from tests.training.recipe_cases import lucky

#: The large eps keeps the size of each gradient in the update: Adam's first step otherwise reduces it to its sign, and
#: the last bits of a gradient near zero would decide about a whole step.
OPTIMIZER = dataclasses.replace(tiny.RUN_OPTIMIZER, learning_rate=0.1, eps=0.1)
ROOT = pathlib.Path(__file__).parents[2]


class LuckyPool(pool.JudgePool):
    """Real workers look at every answer; what counts as right is luck, so that there is something to learn."""

    def judge(self, items: Any) -> Any:
        found = super().judge(items)
        return [dataclasses.replace(verdict, correct=lucky(*item)) for item, verdict in zip(items, found, strict=True)]


def get_config() -> RunSettings:
    """Three updates of SFT and two outer steps, each saved, with parameters split over pairs of devices."""
    base = tiny.run_settings()
    return dataclasses.replace(
        base,
        mesh=MeshSettings(data=-1, fsdp=2),
        sft=dataclasses.replace(base.sft, steps=3, log_every=1, optimizer=OPTIMIZER),
        rl=dataclasses.replace(
            base.rl,
            steps=2,
            save_rollouts_every=1,
            hint_gap_every=0,
            optimizer=OPTIMIZER,
            # One size for all programs: four rows, one a device.
            rollout=dataclasses.replace(base.rl.rollout, rows_per_program=4),
        ),
        judge=pool.JudgeSettings(workers=1),
        evaluation=EvaluationSettings(questions=5, rows_per_program=4),
        checkpoints=CheckpointSettings(every=1, keep_last=2),
    )


class Group:
    """``count`` processes with ``devices`` devices each, on one run directory.

    Args:
      workdir: the run directory.
      cache: folder of compiled programs.
      count: processes; one is started as anyone would start it.
      devices: of each process.
      arguments: more of the command line.
    """

    def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, count: int, devices: int, *arguments: str):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, "-m", "tests.training.pair_cases", f"--config={__file__}", f"--workdir={workdir}"]
        command += [f"--config.cpu_devices={devices}", *arguments]
        self._said = [workdir.with_name(f"{workdir.name}.{number}.said") for number in range(count)]
        self.processes = []
        for number, said in enumerate(self._said):
            place = [f"--coordinator={address}", f"--processes={count}", f"--process-id={number}"] if count > 1 else []
            with said.open("w") as file:
                self.processes.append(
                    subprocess.Popen([*command, *place], cwd=ROOT, env=environment, stdout=file, stderr=file)
                )

    def said(self, number: int) -> str:
        """Everything that a process has printed, without what jax's libraries say of their connections."""
        lines = self._said[number].read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))

    def finish(self, patience: float = 900.0) -> list[int]:
        """Waits for all; the exit codes. Whoever is left after ``patience`` seconds is killed."""
        try:
            return [process.wait(timeout=patience) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()


if __name__ == "__main__":
    pool.JudgePool = LuckyPool  # type: ignore[misc]
    cli.run(train.main, define=train.define)
