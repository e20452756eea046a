"""Checkpoints: asynchronous, atomic, keeping the last few and the best, on Orbax's ``CheckpointManager``.

A training state is stored flat, one array per path such as ``policy/params/blocks/q_proj/weight``, so that a checkpoint
can be compared with what a program expects, and read in part, without knowing the classes that made it.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from igpo_jax.errors import UserError
from igpo_jax.parallel import processes
from igpo_jax.training import checkpoint_trees as trees
from igpo_jax.training.checkpoint_guards import (
    background_failure,
    interrupted_later,
    quiet_coroutines,
    quiet_failures,
    watch_background,
)
from igpo_jax.training.checkpoint_policy import CheckpointSettings, Keep
from igpo_jax.training.files import in_words, spared_when_full

_log = logging.getLogger(__name__)
#: Part of the names that Orbax gives to checkpoints until they are whole.
_TEMPORARY = "orbax-checkpoint-tmp"
#: Metrics of checkpoints that were saved before they were measured.
_SCORES = "scores.json"


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
        self._keep = Keep(self.settings)
        self._current: int | None = None
        self._needed = 0
        self._prepare()
        watch_background()
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
            if _TEMPORARY in name:
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
        return metrics | {step: metric for step, metric in self._read_scores().items() if step in self.steps()}

    def _read_scores(self) -> dict[int, float]:
        path = self.directory / _SCORES
        try:
            return {int(step): float(metric) for step, metric in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); the best checkpoint so far is not known", path, error)
            return {}

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

    def due(self, step: int, force: bool = False) -> bool:
        """Returns whether ``save`` would write at ``step``: on schedule or by force, and not twice."""
        scheduled = bool(self.settings.every) and step % self.settings.every == 0
        return (force or scheduled) and step != self._current

    def save(
        self,
        step: int,
        state: Any,
        extra: dict[str, Any] | None = None,
        metric: float | None = None,
        force: bool = False,
    ) -> bool:
        """Starts writing ``state`` where a save is due at ``step``; returns whether it did.

        A save is due every ``settings.every`` steps, and with ``force``. The device arrays may be donated as soon as
        this returns. Checkpoints of later steps belong to a future that the run left behind when it resumed before
        them, and are deleted once this one is on disk.

        A scheduled save that fails, for want of space or otherwise, is named in a warning: the run can go on, and the
        checkpoints before it stay. With several processes that is so where the room was too little from the start; a
        write that breaks off on one of them is an error, because the others cannot finish the checkpoint without it.

        Args:
          step: updates made so far.
          state: pytree of arrays, typed PRNG keys included.
          extra: JSON values to store beside it; ``device_count`` is added.
          metric: what ``keep_best`` ranks by, greater is better; None or NaN takes no part.
          force: save whatever the step is; its failure is an error.

        Raises:
          UserError: where a forced save could not be written, or with several processes the one before.
        """
        if self.read_only:
            raise UserError(f"checkpoint folder {self.directory} was opened for reading only; open it for writing")
        if not self.due(step, force):
            return False
        try:
            self.wait()
        except UserError as error:  # of the save before this one, which nobody was waiting for
            if jax.process_count() > 1:  # but the other processes, whom only this one's end releases
                raise
            _log.warning("%s; the run goes on", error)
        try:
            self._begin(step, state, extra or {}, None if metric is None or math.isnan(metric) else metric)
        except UserError as error:
            if force:
                raise
            _log.warning("%s; the run goes on and tries again at the next one", error)
            return False
        return True

    def _begin(self, step: int, state: Any, extra: dict[str, Any], metric: float | None) -> None:
        """Starts the write of a checkpoint, if there is room for it."""
        self._needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        missing = self._needed - self._free()
        if processes.agree_any(missing > 0):
            raise self._write_error(step, OSError("no room for it"))
        self._current = step
        arrays = trees.to_storage(state)
        record = {
            "metric": metric,
            "extra": {"device_count": jax.device_count(), **extra},
            "checksums": trees.checksums(arrays),
        }
        record["own_checksum"] = trees.record_checksum(record)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), extra=ocp.args.JsonSave(record))
        try:
            if step in self.steps():
                self._manager.delete(step)
            self._keep.metrics.pop(step, None)
            if metric is not None:
                self._keep.metrics[step] = metric
            with interrupted_later():
                self._manager.save(step, args=args, force=True)
        except OSError as error:
            raise self._failed(error) from error

    def score(self, step: int, metric: float) -> None:
        """Gives the checkpoint of ``step`` its metric after it was saved; ``keep_best`` ranks by it from then on."""
        if math.isnan(metric) or step not in self.steps():
            return
        self._keep.metrics[step] = metric
        kept = {str(known): value for known, value in self._keep.metrics.items() if known in self.steps()}
        if not processes.is_main():
            return
        with spared_when_full(f"{self.directory / _SCORES}"):
            draft = self.directory / f".{_SCORES}.draft"
            draft.write_text(json.dumps(kept))
            draft.replace(self.directory / _SCORES)

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        subset: bool = False,
        newer: Mapping[str, jax.Array] | None = None,
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
          newer: by path, values of what the state did not have when older runs were saved.

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
                with quiet_coroutines():
                    arrays, extra = self._restore(candidate, wanted, subset, newer or {})
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

    def _restore(
        self, step: int, wanted: Any, subset: bool, newer: Mapping[str, jax.Array]
    ) -> tuple[Any, dict[str, Any]]:
        saved = self._manager.item_metadata(step)["state"].tree
        added = {path: value for path, value in newer.items() if path not in saved}
        wanted = {path: leaf for path, leaf in wanted.items() if path not in added}
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
        trees.check_sums(restored["extra"], restored["state"])
        return {**restored["state"], **added}, restored["extra"]["extra"]

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
            with interrupted_later(), quiet_failures():
                self._watch_own_part()
                self._manager.wait_until_finished()
        except Exception as error:  # a background write fails as OSError or as tensorstore's ValueError
            raise self._failed(error) from error

    def _watch_own_part(self) -> None:
        """With several processes, raises what this one's part of the save failed by while the others still wait."""
        while jax.process_count() > 1 and self._manager.is_saving_in_progress():
            if (error := background_failure()) is not None:
                raise error
            time.sleep(0.02)

    def _failed(self, error: Exception) -> UserError:
        """Clears away what a failed save has written; returns what to raise."""
        if jax.process_count() > 1:  # others may be writing it still; the next start discards it
            return self._write_error(self._current, error)
        step, self._current = self._current, None
        for path in self.directory.iterdir():
            if _TEMPORARY in path.name and processes.is_main():
                path.rmtree(missing_ok=True)
        self._manager.reload()
        return self._write_error(step, error)

    def _write_error(self, step: int | None, error: Exception) -> UserError:
        missing = self._needed - self._free()
        advice = "check the free space and the permissions"
        if missing > 0:
            advice = (
                f"it takes {in_words(self._needed)} and {in_words(self._free())} are free, so {in_words(missing)} are "
                "missing: make room there"
            )
        return UserError(
            f"checkpoint of step {step} could not be written to {self.directory} ({_first_line(error)}); "
            f"{advice}; the checkpoints before it are intact"
        )

    def _free(self) -> float:
        """Free bytes where the checkpoints go; endless in a bucket."""
        if "://" in str(self.directory):
            return math.inf
        return shutil.disk_usage(str(self.directory)).free

    def close(self) -> None:
        """Finishes the save under way and releases Orbax's threads."""
        with interrupted_later():
            self.wait()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
