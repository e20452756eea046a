"""What both stages keep from step to step besides the model: checkpoints, sums for the table, the log of their rows."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel import processes
from igpo_jax.training import console, health, optimizers, plots
from igpo_jax.training.accounting import Accounts, Work, productive_seconds
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.files import spared_when_full
from igpo_jax.training.metrics import read_metrics
from igpo_jax.training.run import Run
from igpo_jax.training.state import TrainState
from igpo_jax.training.stopping import Stopped


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
        self._painter = plots.Painter(run.workdir)
        #: Whether a run that goes on from another step than those of the schedule would be another run.
        self.only_on_schedule = False
        self.seconds = 0.0
        self.sums: dict[str, float] = {}

    def accounts(self, lora: LoraSettings) -> Accounts:
        """The stage's accounting, which goes on from the rows that are logged so far."""
        run, length = self._run, self._run.settings.sampler.length
        work = Work.of(run.model.config, run.settings.sampler, run.settings.prompt_length, lora)
        productive = productive_seconds(read_metrics(run.workdir)) if processes.is_main() else 0.0
        return Accounts(work, length, run.mesh, productive, run.first_start)

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The step and state to go on from: the newest good checkpoint, or ``state`` itself."""
        newer = {name: getattr(state, name) for name in ("skipped", "skipped_in_a_row")}
        found = self._checkpoints.restore(_abstract(dataclasses.replace(state, frozen=None)), newer=newer)
        if found is None:
            return 0, state
        step, restored, extra = found
        if step > self._total:
            raise UserError(
                f"{self._name}: the run has made {step} steps, but only {self._total} are asked for; ask for {step} or "
                "more, or use another --workdir"
            )
        done = "finished already" if step == self._total else f"going on from step {step} of {self._total}"
        console.note(f"{self._name}: {done}")
        self.seconds, self.sums = extra["seconds"], extra["sums"]
        return step, dataclasses.replace(restored, frozen=state.frozen)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the finished row of ``step``: every row of a training stage passes here, once."""
        self._run.log.write(self._name, step, values)
        for finding in self.watch.observe(step, values) if self.watch else ():
            console.warn(f"{finding.signature} is {console.format_number(finding.value)}: {finding.advice}")
        if processes.is_main():
            with spared_when_full("the pictures of the curves"):
                self._painter.row_written()

    def add(self, values: dict[str, float]) -> None:
        """Adds to the sums that the final table's means are made of."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def elapsed(self) -> float:
        """Seconds spent in this stage, restarts included."""
        return self.seconds + time.perf_counter() - self._started

    def check_finite(self, values: Mapping[str, float]) -> None:
        """Says that updates were skipped, by the metrics of the last one; raises UserError for too many in a row."""
        limit, found = self._run.settings.nonfinite_limit, int(values["skipped_in_a_row"])
        if found:
            end = f"; {limit} in a row end the run" if limit else ""
            console.warn(f"{self._name}: loss or gradient not finite, update skipped ({found} in a row{end})")
        if limit and found >= limit:
            why = " and ".join(
                f"the {what} is {values[name]}"
                for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm"))
                if not math.isfinite(values[name])
            )
            good = max(self._checkpoints.steps(), default=0)
            advice = "there is no checkpoint yet: start with a smaller learning rate in another --workdir"
            if good:
                folder = self._run.workdir / "checkpoints" / self._name / str(good)
                advice = (
                    f"the last good checkpoint is {folder}: go on with a smaller learning rate, --resume-with-changes"
                )
            raise UserError(f"{self._name}: the last {found} updates were skipped, because {why}; {advice}")

    def finish(self, step: int, state: TrainState) -> None:
        """The end of a step whose row is written: saves on schedule and at the last step, and leaves if asked to.

        Raises:
          Stopped: the run was asked to end; the step is saved.
        """
        self.save(step, state, force=step == self._total)
        with self.saved_if_stopped(step, state):
            self._run.stop.point(self._checkpoints.preempted(step))

    @contextlib.contextmanager
    def saved_if_stopped(self, step: int, state: TrainState) -> Iterator[None]:
        """Saves ``state``, which is that after ``step`` steps, where the block is left because the run is to end."""
        try:
            yield
        except Stopped:
            if step and not self.only_on_schedule:
                self.save(step, state, force=True)
            self._checkpoints.wait()
            saved = max(self._checkpoints.steps(), default=0)
            what = f"step {saved} of {self._total} is saved" if saved else "no step was finished that could be saved"
            console.note(f"{self._name}: {what}")
            raise

    def save(self, step: int, state: TrainState, force: bool = False) -> None:
        """Saves where the schedule says so, or by force; journals that no restart needs any more are deleted."""
        if not self._checkpoints.due(step, force):
            return
        # A checkpoint that is ahead of the log would leave steps without a row; and while updates are skipped, those
        # from before, which may be the cure, are not replaced by more of the same parameters.
        waiting = processes.agree_any(not self._run.log.sync())
        if waiting and not force:
            console.warn(
                f"no checkpoint of step {step} is made: the rows of metrics before it wait for room on the disk"
            )
        if (waiting or int(state.skipped_in_a_row)) and not force:
            return
        extra = {"seconds": self.elapsed(), "sums": self.sums}
        if self._checkpoints.save(step, dataclasses.replace(state, frozen=None), extra, force=force):
            # A restart begins at the oldest of these at the earliest.
            kept = [known for known in self._checkpoints.steps() if known < step]
            self._forget(min(kept[-self._run.settings.checkpoints.keep_last :], default=0))

    def score(self, step: int, metric: float) -> None:
        """Gives the checkpoint of ``step``, if there is one, the metric that the best is kept by."""
        self._checkpoints.score(step, metric)

    def _forget(self, upto: int) -> None:
        for name in (self._name, f"{self._name}_eval"):
            self._run.judge.forget(name, upto)

    def end(self) -> None:
        """The stage is finished: its last checkpoint is on disk, its journals are done with."""
        self._checkpoints.wait()
        self._forget(self._total)

    def close(self) -> None:
        """Waits for what is still being written, also when the stage is broken off."""
        self._run.judge.end()
        self._checkpoints.close()


def _abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def make_optimizer(settings: optimizers.OptimizerSettings, updates: int) -> tuple[Any, optax.Schedule]:
    """The optimizer of a stage of ``updates`` updates, and its learning rate by update."""
    return optimizers.make_optimizer(settings, updates), optimizers.make_schedule(settings, updates)


def floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Metrics from the device as Python numbers."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
