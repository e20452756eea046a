"""What surrounds calls into Orbax: interrupts wait for their end, and noise about reported failures is dropped."""

import contextlib
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

#: Seconds that reads beside a failed one get to fail too.
_AFTERMATH = 0.3


@contextlib.contextmanager
def quiet_coroutines() -> Iterator[None]:
    """Drops what is said when Orbax abandons the reads beside a failed one; who asked for them reports the failure.

    Python speaks of the coroutines, asyncio of the errors that nobody fetched, and tensorstore's threads, through
    ``sys.excepthook``, of the event loop that is gone.
    """
    hooks, log = (sys.unraisablehook, sys.excepthook), logging.getLogger("asyncio")
    sys.unraisablehook, sys.excepthook, level = lambda _: None, _but_closed_loops, log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except Exception:
        time.sleep(_AFTERMATH)
        raise
    finally:
        gc.collect()
        sys.unraisablehook, sys.excepthook = hooks
        log.setLevel(level)


def _but_closed_loops(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Puts a Ctrl-C off to the end of the block; a second one takes effect at once.

    Orbax, broken off in the middle, loses the save and leaves threads behind that fail when the interpreter ends.
    """
    usual = signal.getsignal(signal.SIGINT)
    # A handler of the run's own does not break anything off.
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return
    came: list[tuple[int, Any]] = []

    def remember(number: int, frame: Any) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append((number, frame))

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        signal.default_int_handler(*came[0])


#: What Orbax said last about a save of this process that failed in the background.
_failed: list[BaseException] = []


def watch_background() -> None:
    """Keeps what Orbax logs where a save fails in the background, and drops its traceback."""
    _failed.clear()
    logging.getLogger("absl").addFilter(_not_of_background_saves)  # the same filter is added once


def background_failure() -> BaseException | None:
    """The error of this process's part of the last save, as soon as there is one.

    Orbax itself raises it only when all processes have come to the end of the save, and those whose part was written
    wait for this one's: twenty minutes.
    """
    return _failed[0] if _failed else None


def _not_of_background_saves(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if "in background save thread" not in message:
        return "_SignalingThread.run() raised" not in message
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
        _failed[:] = [record.exc_info[1]]
    return False


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """Drops the traceback that Orbax prints of a failed save before it raises it."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
