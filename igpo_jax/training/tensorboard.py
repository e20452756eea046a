"""TensorBoard's event files, written without a thread of their own: a full disk neither stops nor blocks a run."""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from igpo_jax.training.files import Growing


class Events:
    """One event file of a stage.

    Args:
      folder: where TensorBoard looks for the stage; made if absent.
      purge_step: the step from which on TensorBoard is to forget what it knows; None for none.

    Raises:
      OSError: the file cannot be made.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # By the nanosecond: a quick restart would otherwise append to the file before.
        moment = time.time_ns()
        name = f"events.out.tfevents.{moment // 10**9}.{socket.gethostname()}.{os.getpid()}.{moment}"
        self._file = Growing(folder / name)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, moment: float, values: Mapping[str, float]) -> None:
        """Adds the values of a step; ``moment`` is in seconds since 1970."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(wall_time=moment, step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Closes the file; events that still wait for room are lost, as metrics.jsonl has them."""
        self._file.close()

    def _add(self, event: Event) -> None:
        """Appends a record: length, its checksum, the event, its checksum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.append(length + checksums[0] + data + checksums[1])
