"""What both stages keep from step to step besides the model: checkpoints, sums for the table, the log of their rows."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import optax

from igpo_jax.models import llada
from igpo_jax.training import console, health, optimizers
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.run import Run
from igpo_jax.training.state import TrainState


@dataclasses.dataclass
class StageResult:
    """What a stage leaves: plain parameters, and what the final table says about it."""

    params: llada.Params
    seconds: float
    means: dict[str, float]


class Stage:
    """A stage's state on disk: continued from where it was, saved on schedule, frozen parameters left out."""

    def __init__(self, run: Run, name: str, total: int):
        self._checkpoints = Checkpoints(run.workdir / "checkpoints" / name, run.settings.checkpoints)
        self._run, self._name, self._total = run, name, total
        self._started = time.perf_counter()
        self.watch: health.Monitor | None = None
        self.seconds = 0.0
        self.sums: dict[str, float] = {}

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The step and state to go on from: the newest good checkpoint, or ``state`` itself."""
        found = self._checkpoints.restore(_abstract(dataclasses.replace(state, frozen=None)))
        if found is None:
            return 0, state
        step, restored, extra = found
        done = "finished already" if step == self._total else f"going on from step {step} of {self._total}"
        console.note(f"{self._name}: {done}")
        self.seconds, self.sums = extra["seconds"], extra["sums"]
        return step, dataclasses.replace(restored, frozen=state.frozen)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the finished row of ``step``: every row of a training stage passes here, once."""
        self._run.log.write(self._name, step, values)
        for finding in self.watch.observe(step, values) if self.watch else ():
            console.warn(f"{finding.signature} is {console.format_number(finding.value)}: {finding.advice}")

    def add(self, values: dict[str, float]) -> None:
        """Adds to the sums that the final table's means are made of."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def elapsed(self) -> float:
        """Seconds spent in this stage, restarts included."""
        return self.seconds + time.perf_counter() - self._started

    def save(self, step: int, state: TrainState, metric: float | None) -> None:
        """Saves where the schedule says so, and at the last step."""
        extra = {"seconds": self.elapsed(), "sums": self.sums}
        self._checkpoints.save(step, dataclasses.replace(state, frozen=None), extra, metric, force=step == self._total)

    def close(self) -> None:
        """Waits for what is still being written, also when the stage is broken off."""
        self._checkpoints.close()


def _abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def make_optimizer(settings: optimizers.OptimizerSettings, updates: int) -> tuple[Any, optax.Schedule]:
    """The optimizer of a stage of ``updates`` updates, and its learning rate by update."""
    return optimizers.make_optimizer(settings, updates), optimizers.make_schedule(settings, updates)


def floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Metrics from the device as Python numbers."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
