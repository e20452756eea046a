"""The process that compares answers: limited in CPU time and memory, killed and replaced when it passes a limit.

A frame is four bytes of length (big endian) and that much JSON. The first frame is ``["ready"]``; then requests are
``[gold, answer]`` and replies ``[equal, reason, stopped]``, in order, with ``stopped`` one of "", "time", "memory". The
process ends when its input does.
"""

import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from igpo_jax.rewards.answers import symbolic
from igpo_jax.rewards.equality import compare, needs_symbolic

#: Exit status after a reply with ``stopped`` = "memory": what is left of the heap is not trusted.
OUT_OF_MEMORY = 77
#: CPU seconds between the soft stop (an exception) and the kernel's kill, which also ends a long call in C.
GRACE = 0.4
#: Seconds without work after which a worker imports sympy ahead of need.
IDLE = 0.2


class _OutOfTime(BaseException):
    """Not an Exception, so that no library in between swallows it."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _OutOfTime


def main(time_limit: float, memory_mb: int) -> None:
    """Serves requests from standard input until it closes.

    Args:
        time_limit: CPU seconds for one comparison.
        memory_mb: limit on the address space, MiB.
    """
    requests, replies = _take_streams()
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_mb * 2**20
    limit = limit if allowed == resource.RLIM_INFINITY else min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, _stop)
    os.write(replies, pack(["ready"]))
    while True:
        if not select.select([requests], [], [], IDLE)[0]:
            symbolic.load()  # while nobody waits; otherwise at the first comparison that needs it
        frame = _read_frame(requests)
        if frame is None:
            return
        gold, answer = json.loads(frame)
        equal, reason, stopped = _compare(gold, answer, time_limit)
        os.write(replies, pack([equal, reason, stopped]))
        if stopped == "memory":
            os._exit(OUT_OF_MEMORY)


def pack(message: Sequence[object]) -> bytes:
    """One frame of the protocol."""
    body = json.dumps(message).encode("ascii")
    return struct.pack(">I", len(body)) + body


def unpack(received: bytearray) -> Iterator[list[Any]]:
    """Takes the complete frames off the front of ``received``."""
    while len(received) >= 4:
        end = 4 + struct.unpack(">I", received[:4])[0]
        if len(received) < end:
            return
        message = json.loads(received[4:end])
        del received[:end]
        yield message


def _take_streams() -> tuple[int, int]:
    """Moves the protocol away from descriptors 0 and 1, so that nothing a library prints can disturb it."""
    requests, replies = os.dup(0), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    return requests, replies


def _read_frame(descriptor: int) -> bytes | None:
    header = _read_exactly(descriptor, 4)
    return None if header is None else _read_exactly(descriptor, struct.unpack(">I", header)[0])


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _compare(gold: str, answer: str, time_limit: float) -> tuple[bool, str, str]:
    try:
        if needs_symbolic(gold, answer):
            symbolic.load()
        signal.setitimer(signal.ITIMER_PROF, time_limit + GRACE)
        signal.setitimer(signal.ITIMER_VIRTUAL, time_limit)
        result = compare(gold, answer)
        return result.equal, result.reason, ""
    except _OutOfTime:
        return False, "stopped at the time limit", "time"
    except MemoryError:
        return False, "stopped at the memory limit", "memory"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
