"""Checkpoints: asynchronous, atomic, keeping the last few and the best, on Orbax's ``CheckpointManager``.

A training state is stored flat, one array per path such as ``policy/params/blocks/q_proj/weight``, so that a checkpoint
can be compared with what a program expects, and read in part, without knowing the classes that made it.
"""

import contextlib
import dataclasses
import gc
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from igpo_jax.errors import UserError
from igpo_jax.training import checkpoint_trees as trees

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When to save and what to keep.

    Raises:
      UserError: for a value outside its range.
    """

    every: int = 100  #: save at every step that this divides; 0 = only where a save is forced
    keep_last: int = 2  #: how many of the newest checkpoints to keep
    keep_best: bool = True  #: keep the checkpoint with the greatest metric as well

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"every is {self.every}, expected 0 (only forced saves) or more")
        if self.keep_last < 1:
            raise UserError(f"keep_last is {self.keep_last}, expected 1 or more")


class _Keep:
    """Orbax's preservation policy for keep-last-n and keep-best, on metrics that this module reads itself.

    Orbax reads its own metric files when it starts, and a damaged one would stop the run.
    """

    def __init__(self, settings: CheckpointSettings) -> None:
        self.settings = settings
        self.metrics: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        # The one just saved comes last. Steps beyond it are a future that the run left when it resumed before them.
        past = sorted(step for step in steps if step <= steps[-1])
        kept = {*past[-self.settings.keep_last :], self.best(past) if self.settings.keep_best else None}
        return [step in kept for step in steps]

    def best(self, steps: Sequence[int]) -> int | None:
        """Returns the step with the greatest metric, the later one of equals; None where no step has one."""
        scored = [(self.metrics[step], step) for step in steps if step in self.metrics]
        return max(scored)[1] if scored else None


class Checkpoints:
    """The checkpoints of one run, in one folder (local or ``gs://``).

    Use it as a context manager, or call ``close``, so that a save under way is finished.

    Args:
      directory: folder of the checkpoints; made if absent.
      settings: when to save and what to keep.
      read_only: for a command that only reads: nothing is made, renamed or cleaned, and ``save`` is refused.

    Raises:
      UserError: where the folder cannot be made, read or written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        settings: CheckpointSettings | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory = _absolute(directory)
        self.settings = settings or CheckpointSettings()
        self.read_only = read_only
        self._keep = _Keep(self.settings)
        self._current: int | None = None
        self._prepare()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=not read_only,
                preservation_policy=self._keep,
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()},
        )
        self._keep.metrics = self._read_metrics()

    def _prepare(self) -> None:
        """Makes the folder and names what a killed run left half-written, which Orbax is about to clean away."""
        try:
            if not self.read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in self.directory.iterdir()]
        except OSError as error:
            verb = "read" if self.read_only else "made"
            raise UserError(
                f"checkpoint folder {self.directory} cannot be {verb} ({error.strerror or error}); "
                "check the path and its permissions, or pass another --workdir"
            ) from error
        if self.read_only:
            return
        if "://" not in str(self.directory) and not os.access(self.directory, os.W_OK):
            raise UserError(
                f"checkpoint folder {self.directory} is not writable; change its permissions or pass another --workdir"
            )
        for name in names:
            if "orbax-checkpoint-tmp" in name:
                _log.warning(
                    "checkpoint %s was never finished (the run was stopped while writing it); it is discarded",
                    self.directory / name,
                )

    def _read_metrics(self) -> dict[int, float]:
        metrics = {}
        for step in self.steps():
            try:
                metric = self._read_record(step)["metric"]
            except Exception as error:  # what damage raises depends on the damaged file; restore() reports it
                _log.debug("the record of checkpoint %s cannot be read: %s", step, error)
                continue
            if metric is not None:
                metrics[step] = metric
        return metrics

    def _read_record(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))["extra"]

    def steps(self) -> list[int]:
        """Returns the steps that have a finished checkpoint or one being written, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the kept step with the greatest metric, or None where no kept checkpoint has one."""
        return self._keep.best(self.steps())

    def preempted(self, step: int) -> bool:
        """Returns whether the cluster has announced, to all processes alike, that this job ends now."""
        return bool(self._manager.reached_preemption(step))

    def save(
        self,
        step: int,
        state: Any,
        extra: dict[str, Any] | None = None,
        metric: float | None = None,
        force: bool = False,
    ) -> bool:
        """Starts writing ``state`` where a save is due at ``step``; returns whether it did.

        A save is due every ``settings.every`` steps, on preemption, and with ``force``. The device arrays may be
        donated as soon as this returns. Checkpoints of later steps belong to a future that the run left behind when
        it resumed before them, and are deleted once this one is on disk.

        Args:
          step: updates made so far.
          state: pytree of arrays, typed PRNG keys included.
          extra: JSON values to store beside it; ``device_count`` is added.
          metric: what ``keep_best`` ranks by, greater is better; None or NaN takes no part.
          force: save whatever the step is.

        Raises:
          UserError: where this or the previous save could not be written.
        """
        if self.read_only:
            raise UserError(f"checkpoint folder {self.directory} was opened for reading only; open it for writing")
        due = force or (self.settings.every and step % self.settings.every == 0) or self.preempted(step)
        if not due or step == self._current:
            return False
        self.wait()
        self._current = step
        if metric is not None and math.isnan(metric):
            metric = None
        record = {"metric": metric, "extra": {"device_count": jax.device_count(), **(extra or {})}}
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(trees.to_storage(state)), extra=ocp.args.JsonSave(record))
        try:
            if step in self.steps():
                self._manager.delete(step)
            self._keep.metrics.pop(step, None)
            if metric is not None:
                self._keep.metrics[step] = metric
            with _interrupted_later():
                self._manager.save(step, args=args, force=True)
        except OSError as error:
            raise self._write_error(error) from error
        return True

    def restore(
        self, abstract_state: Any, step: int | None = None, subset: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest good checkpoint, or the one of ``step``.

        A checkpoint that cannot be read is named in a warning and the one before it is used. Unless ``read_only``, the
        unreadable one is renamed to ``STEP.unreadable``, out of the way of the checkpoints to come.

        Args:
          abstract_state: pytree like the saved state, of arrays or ``ShapeDtypeStruct``; every array is read straight
            into the leaf's sharding, which may be of another mesh than the one that saved it, or onto the first device
            where the leaf has none.
          step: the step to read instead of the newest.
          subset: read only the paths that ``abstract_state`` has, and allow the checkpoint to have more.

        Returns:
          (step, state, extra), or None where there is no checkpoint at all.

        Raises:
          UserError: where the saved tree is not the expected one, ``step`` does not exist, or nothing could be read.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"{self.directory} has no checkpoint of step {step}; it has {steps or 'none'}")
        wanted = trees.abstract_storage(abstract_state)
        failures: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            try:
                with _quiet_coroutines():
                    arrays, extra = self._restore(candidate, wanted, subset)
            except UserError:
                raise
            except Exception as error:  # what damage raises depends on the damaged file
                failures[candidate] = _first_line(error)
                _log.warning("checkpoint %s cannot be read: %s", self.directory / str(candidate), failures[candidate])
                continue
            self._retire(failures)
            if not subset:
                self._current = candidate
            return candidate, trees.from_storage(arrays, abstract_state), extra
        if failures:
            found = "; ".join(f"step {number}: {reason}" for number, reason in failures.items())
            raise UserError(
                f"no checkpoint in {self.directory} can be read ({found}); restore it from a copy, or start in an "
                "empty --workdir"
            )
        return None

    def _restore(self, step: int, wanted: Any, subset: bool) -> tuple[Any, dict[str, Any]]:
        saved = self._manager.item_metadata(step)["state"].tree
        trees.check(saved, wanted, f"checkpoint {self.directory / str(step)}", subset)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=subset,
                ),
                extra=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["extra"]["extra"]

    def _retire(self, failures: dict[int, str]) -> None:
        if self.read_only or not failures:
            return
        if jax.process_index() == 0:
            for step in failures:
                source = self.directory / str(step)
                source.rename(_free_name(source))
        ocp.multihost.sync_global_processes("igpo_jax:retire_unreadable")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until the save under way is on disk; raises UserError where it could not be written.

        A Ctrl-C in the meantime takes effect afterwards, a second one at once.
        """
        try:
            with _interrupted_later(), _quiet_failures():
                self._manager.wait_until_finished()
        except Exception as error:  # a background write fails as OSError or as tensorstore's ValueError
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> UserError:
        return UserError(
            f"checkpoint of step {self._current} could not be written to {self.directory} ({_first_line(error)}); "
            "check the free space and the permissions; the checkpoints before it are intact"
        )

    def close(self) -> None:
        """Finishes the save under way and releases Orbax's threads."""
        with _interrupted_later():
            self.wait()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def _quiet_coroutines() -> Iterator[None]:
    """Drops what Python prints when Orbax abandons the reads beside a failed one; the failure itself is reported."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = hook


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Puts a Ctrl-C off to the end of the block; a second one takes effect at once.

    Orbax, broken off in the middle, loses the save and leaves threads behind that fail when the interpreter ends.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[int, Any]] = []

    def remember(number: int, frame: Any) -> None:
        if came:
            usual(number, frame)
        came.append((number, frame))

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(*came[0])


@contextlib.contextmanager
def _quiet_failures() -> Iterator[None]:
    """Drops the traceback that Orbax prints of a failed save before it raises it."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _absolute(directory: str | os.PathLike[str]) -> epath.Path:
    name = os.fspath(directory)
    return epath.Path(name if "://" in name else os.path.abspath(name))


def _free_name(path: epath.Path) -> epath.Path:
    target = path.parent / f"{path.name}.unreadable"
    number = 2
    while target.exists():
        target = path.parent / f"{path.name}.unreadable{number}"
        number += 1
    return target


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
