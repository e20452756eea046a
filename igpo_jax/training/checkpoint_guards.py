"""What surrounds calls into Orbax: interrupts wait for their end, and noise about reported failures is dropped."""

import contextlib
import gc
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_coroutines() -> Iterator[None]:
    """Drops what Python prints when Orbax abandons the reads beside a failed one; the failure itself is reported."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = hook


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
