"""The log of a run: ``metrics.jsonl``, one JSON object a row, and TensorBoard events beside it.

A row is ``{"stage": "rl", "step": 12, "time": 1760000000.0, "loss": 0.5, ...}``: the stage of the recipe, the step
within that stage, seconds since 1970, and the values. JSON has no NaN or infinity; they are written as the strings
"NaN", "Infinity" and "-Infinity", so that every reader can parse the file, and come back as floats from
``read_metrics``. TensorBoard gets the finite values.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.training.files import Growing, spared_when_full, write_whole
from igpo_jax.training.tensorboard import Events
from igpo_jax.training.trackers import Tracker

FILE = "metrics.jsonl"
_RESERVED = ("stage", "step", "time")
_log = logging.getLogger(__name__)


def is_wall_clock(name: str) -> bool:
    """Whether a metric measures time on the machine; every other one is the same to the bit when a run is repeated."""
    return name.endswith(("_seconds", "_per_second")) or name.startswith(("mfu_", "goodput"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One logged step."""

    stage: str
    step: int
    time: float  # seconds since 1970
    values: dict[str, float]


class MetricsLog:
    """Appends rows to ``directory/metrics.jsonl`` and to ``directory/tensorboard/STAGE``.

    Opening it repairs the end of a file that a killed run cut in the middle of a line. In a run of several processes
    only one may open it.

    Args:
      directory: the run folder; made if absent.
      tensorboard: whether to write TensorBoard events too.
      tracker: another service that gets every row, closed with the log; None for none.

    Raises:
      UserError: where the file cannot be written, or a line other than the last is damaged.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tensorboard: bool = True, tracker: Tracker | None = None
    ) -> None:
        self.directory = pathlib.Path(directory)
        self._tracker = tracker
        self._path = self.directory / FILE
        self._tensorboard = tensorboard
        self._logged: set[tuple[str, int]] = set()
        self._writers: dict[str, Events] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._open(read_metrics(self.directory))
        except OSError as error:
            raise UserError(
                f"metrics file {self._path} cannot be written ({error.strerror or error}); check the permissions of "
                "the folder or pass another --workdir"
            ) from error

    def truncate(self, stage: str, step: int) -> int:
        """Removes the rows of ``stage`` beyond ``step``, which a run resumed there is about to log again.

        Call it before the first ``write`` of the stage. TensorBoard is told to forget the same steps.

        Args:
          stage: stage that is resumed; the rows of the others stay.
          step: last step that the checkpoint holds, 0 where the stage starts anew; its own row stays.

        Returns:
          The number of rows removed.
        """
        rows = read_metrics(self.directory)
        kept = [row for row in rows if row.stage != stage or row.step <= step]
        if len(kept) < len(rows):
            self._open(kept, self._file.close())
            if self._tensorboard:
                self._close_writer(stage)
                self._writers[stage] = self._writer(stage, purge_step=step + 1)
        return len(rows) - len(kept)

    def _open(self, rows: list[Row], waiting: bytes = b"") -> None:
        """Leaves exactly ``rows`` in the file, and opens it for more, first for those that wait for room."""
        write_whole(self._path, "".join(_encode(row) for row in rows))
        self._file = Growing(self._path)
        self._file.append(waiting)
        self._logged = {(row.stage, row.step) for row in rows}

    def has(self, stage: str, step: int) -> bool:
        """Whether a row of ``stage`` at ``step`` is in the log."""
        return (stage, step) in self._logged

    def rows(self, stage: str) -> list[Row]:
        """The rows of ``stage`` that are in the file."""
        return [row for row in read_metrics(self.directory) if row.stage == stage]

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row; it is in the file at once, unless the disk is full: then it waits for room in memory.

        Args:
          stage: stage of the recipe, such as "sft" or "rl".
          step: steps of the stage done so far, this one included.
          values: metric name to scalar: a Python number, or a numpy or jax scalar.

        Raises:
          UserError: for a metric called "stage", "step" or "time".
        """
        taken = [name for name in values if name in _RESERVED]
        if taken:
            raise UserError(
                f"metric '{taken[0]}' has the name of a column of {FILE}; rename it, as in '{taken[0]}/all'"
            )
        row = Row(stage, int(step), time.time(), {name: float(value) for name, value in values.items()})
        self._logged.add((row.stage, row.step))
        self._file.append(_encode(row).encode())
        if self._tracker is not None:
            self._tracker.write(stage, row.step, row.values)
        if self._tensorboard:
            with spared_when_full("TensorBoard's events"):
                writer = self._writers.get(stage) or self._writers.setdefault(stage, self._writer(stage))
                finite = {name: value for name, value in row.values.items() if math.isfinite(value)}
                writer.write(row.step, row.time, finite)

    def sync(self) -> bool:
        """Waits until every row is on the disk; False where some still wait for room."""
        return self._file.sync()

    def _writer(self, stage: str, purge_step: int | None = None) -> Events:
        return Events(self.directory / "tensorboard" / stage, purge_step)

    def _close_writer(self, stage: str) -> None:
        if stage in self._writers:
            self._writers.pop(stage).close()

    def close(self) -> None:
        """Flushes and closes every file.

        Raises:
          UserError: rows are lost, because the disk stayed full.
        """
        waiting = self._file.close()
        for stage in list(self._writers):
            self._close_writer(stage)
        if self._tracker is not None:
            self._tracker.close()
        if waiting:
            raise UserError(
                f"{waiting.count(bytes([10]))} rows of {self._path} could not be written, because the disk is "
                "full; make room and start the run again, which repeats what is after the last checkpoint"
            )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FollowedLog(MetricsLog):
    """The log as the other processes of a run know it: the same rows, of which they write none.

    Args:
      directory: the run folder, whose file the main process has opened.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._rows = read_metrics(directory)

    def truncate(self, stage: str, step: int) -> int:
        """Forgets the rows that the main process removes."""
        before = len(self._rows)
        self._rows = [row for row in self._rows if row.stage != stage or row.step <= step]
        return before - len(self._rows)

    def has(self, stage: str, step: int) -> bool:
        """Whether a row of ``stage`` at ``step`` is in the log."""
        return any((row.stage, row.step) == (stage, step) for row in self._rows)

    def rows(self, stage: str) -> list[Row]:
        """The rows of ``stage``."""
        return [row for row in self._rows if row.stage == stage]

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Remembers the row that the main process writes."""
        self._rows.append(Row(stage, int(step), time.time(), {name: float(value) for name, value in values.items()}))

    def sync(self) -> bool:
        """Nothing waits here to be written."""
        return True

    def close(self) -> None:
        """There is no file to close."""


def read_metrics(directory: str | os.PathLike[str]) -> list[Row]:
    """Returns the rows of ``directory/metrics.jsonl`` in file order; none where the file does not exist.

    A last line that was cut in the middle is dropped with a warning.

    Raises:
      UserError: where another line is damaged.
    """
    rows, damaged, count = scan_metrics(directory)
    path = pathlib.Path(directory) / FILE
    for number, why in damaged.items():
        if number < count:
            raise UserError(f"{path} line {number} is not a row of metrics ({why}); remove that line and try again")
        _log.warning("%s line %d was cut in the middle of writing; it is dropped", path, number)
    return rows


def last_steps(directory: str | os.PathLike[str]) -> dict[str, int]:
    """The largest step logged of every stage."""
    found: dict[str, int] = {}
    for row in scan_metrics(directory)[0]:
        found[row.stage] = max(row.step, found.get(row.stage, row.step))
    return found


def scan_metrics(directory: str | os.PathLike[str]) -> tuple[list[Row], dict[int, str], int]:
    """Reads what can be read, for those who only look: a damaged line is left out wherever it stands.

    Returns:
      The good rows in file order, what is wrong with each bad line by its number (from 1), and the number of lines.
      Nothing where the file does not exist.
    """
    path = pathlib.Path(directory) / FILE
    # A cut may also fall inside a character of several bytes.
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows, damaged = [], {}
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_decode(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            damaged[number] = str(error)
    return rows, damaged, len(lines)


def _encode(row: Row) -> str:
    values = {name: value if math.isfinite(value) else _spell(value) for name, value in row.values.items()}
    fields = {"stage": row.stage, "step": row.step, "time": round(row.time, 3), **values}
    return json.dumps(fields, allow_nan=False) + "\n"


def _spell(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _decode(line: bytes) -> Row:
    fields = json.loads(line.decode("utf-8"))
    stage, step, moment = (fields.pop(name) for name in _RESERVED)
    if not isinstance(stage, str) or not isinstance(step, int) or not isinstance(moment, int | float):
        raise ValueError(f"its stage is {stage!r}, its step {step!r} and its time {moment!r}")
    return Row(stage, step, moment, {name: float(value) for name, value in fields.items()})
