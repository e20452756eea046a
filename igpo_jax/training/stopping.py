"""Leaving on request: a signal sets a flag, the run saves at its next safe point and ends with a code of its own.

Two kinds of points are safe: the end of a step, and the moments between two sampled programs, where the parameters are
still those that the step began with. The updates of a step are always made to their end.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from igpo_jax.parallel import processes

#: Exit codes: 75 (EX_TEMPFAIL of sysexits.h) asks a scheduler to start the run again; 130 is a shell's for Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Stopped(Exception):
    """The run leaves because it was asked to; what it has is saved."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}")
        self.code = EXIT_CODES[number]


class Stop:
    """Whether this run was asked to end."""

    def __init__(self) -> None:
        self._came: signal.Signals | None = None

    def request(self, number: int = signal.SIGTERM) -> None:
        """Asks for the end, as the signal ``number`` does."""
        self._came = signal.Signals(number)

    def point(self, preempted: bool = False) -> None:
        """Leaves here if any process was asked to; every process has to pass the same points.

        Args:
          preempted: whether the cluster has announced the end of this job by other means than a signal.

        Raises:
          Stopped: the run was asked to end.
        """
        if processes.agree_any(self._came is not None or preempted):
            raise Stopped(self._came or signal.SIGTERM)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT for requests inside the block (in the main thread; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.request(number)
        for each in EXIT_CODES:
            signal.signal(each, signal.SIG_DFL)
        # print() may be under way in the code that the signal fell into.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: saving at the next safe point, then leaving; a second signal ends at once\n".encode())
