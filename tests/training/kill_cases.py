"""Runs of seconds as processes of their own, to be killed at chosen or random moments, and what they leave."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from igpo_jax.parallel import mesh
from igpo_jax.parallel.mesh import MeshSettings
from igpo_jax.rewards.pool import JudgePool, JudgeSettings
from igpo_jax.training import recipe
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.stopping import Stop, Stopped
from tests.training import tiny
from tests.training.recipe_cases import lucky

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 12


def settings() -> Any:
    """Twelve steps a stage, a checkpoint at every third and an evaluation at every fourth, on two devices."""
    base = tiny.run_settings()
    return dataclasses.replace(
        base,
        warm_up=False,
        mesh=MeshSettings(data=2),
        sft=dataclasses.replace(base.sft, steps=STEPS, log_every=1),
        rl=dataclasses.replace(base.rl, steps=STEPS),
        evaluation=EvaluationSettings(every=4, rows_per_program=8),
        checkpoints=CheckpointSettings(every=3),
    )


class LuckyPool(JudgePool):
    """Real workers look at every answer; what counts as right is luck, so that there is something to learn."""

    def judge(self, items):
        found = super().judge(items)
        return [dataclasses.replace(verdict, correct=lucky(*item)) for item, verdict in zip(items, found, strict=True)]


def main(workdir: str) -> int:
    """What such a process runs."""
    stop = Stop()
    with stop.listening(), LuckyPool(JudgeSettings(workers=1)) as judge:
        mesh.force_cpu_devices(2)
        try:
            recipe.train(settings(), pathlib.Path(workdir), judge, stop=stop)
        except Stopped as stopped:
            return stopped.code
    return 0


class Life:
    """A run as a process, from one start to its end or its kill."""

    def __init__(self, workdir: pathlib.Path, cache: pathlib.Path) -> None:
        self.workdir = workdir
        self._said = workdir.with_name(f"{workdir.name}.said").open("a+")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, "-m", "tests.training.kill_cases", str(workdir)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._said, stderr=self._said)

    def wait_for(self, kind: str, stage: str, step: int, patience: float = 300.0) -> bool:
        """Waits until the run is at a moment (see ``reached``); False where it has ended before."""
        end = time.monotonic() + patience
        while not reached(self.workdir, kind, stage, step):
            if self.process.poll() is not None:
                assert self.process.returncode == 0, self.said()
                return False
            assert time.monotonic() < end, f"{kind} {stage} {step} never came\n{self.said()}"
            time.sleep(0.003)
        return True

    def end(self, number: signal.Signals | None = None) -> int:
        """Sends a signal, if any; returns the exit status of the process."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=300)

    def said(self) -> str:
        """Everything that the runs in this directory have printed."""
        self._said.seek(0)
        return self._said.read()


def reached(workdir: pathlib.Path, kind: str, stage: str, step: int) -> bool:
    """Whether a run is at a moment: a step's row is written, its verdicts come in, its rollout is done, or it saves."""
    if kind == "row":
        log = workdir / "metrics.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return any((row["stage"], row["step"]) == (stage, step) for row in map(json.loads, lines))
    if kind == "saving":
        return any((workdir / "checkpoints" / stage).glob(f"{step}.orbax-checkpoint-tmp*"))
    journal = workdir / "journal" / f"{stage}_{step:06d}.p0.jsonl"
    try:
        text = journal.read_text()
    except FileNotFoundError:
        return False
    return "completions" in text if kind == "updating" else bool(text)


def arrays_of(workdir: pathlib.Path, stage: str, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: parameters, optimizer state and counters."""
    checkpointer = ocp.PyTreeCheckpointer()
    folder = workdir / "checkpoints" / stage / str(step) / "state"
    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, restore_args=as_numpy)


def assert_same_run(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Two finished runs left the same bits: states of both stages, rows, evaluations, rollouts."""
    from tests.training.recipe_cases import metrics_of, summary_of

    for stage in ("sft", "igpo"):
        mine, yours = arrays_of(workdir, stage), arrays_of(whole, stage)
        assert mine.keys() == yours.keys() and len(mine) > 20
        for path, array in mine.items():
            assert array.dtype == yours[path].dtype, path
            assert array.tobytes() == yours[path].tobytes(), path
    assert metrics_of(workdir) == metrics_of(whole)
    assert summary_of(workdir) == summary_of(whole)
    for folder in ("rollouts", "evaluations"):
        assert contents(workdir / folder) == contents(whole / folder)


def contents(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON lines of every file, without wall-clock times."""
    found = {}
    for path in sorted(folder.iterdir()):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
