"""Worker processes that compare answers and can be killed at any time without losing a verdict.

Each worker is a fresh interpreter (no fork of a process that runs jax, no import of the caller's main module). A worker
that passes its limits of CPU time or memory is ended by the kernel, its comparison counts as stopped, and a new worker
takes its place; one that was killed from outside is replaced and its comparisons are made again.
"""

import contextlib
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from igpo_jax.errors import UserError, check_choice
from igpo_jax.rewards import worker as worker_module
from igpo_jax.rewards.equality import Comparison
from igpo_jax.rewards.verdict import KINDS, Open, Verdict, judge_quickly
from igpo_jax.rewards.worker import OUT_OF_MEMORY, pack, unpack

#: Bytes that a worker may have waiting; below the pipe's capacity, so that no write ever blocks.
_WINDOW = 48 * 1024
#: Comparisons that a worker may have waiting: few, so that all workers share a batch.
_AHEAD = 16
#: Times that a comparison is made again when its worker was killed from outside.
_RETRIES = 3
#: Comparisons that a pool remembers (the samples of a group often give the same answer).
_MEMORY = 5_000
#: Seconds, beside ten times the limit of CPU time, after which a silent worker is taken for stuck.
PATIENCE = 20.0
#: Signals and statuses of a worker that was ended from outside, or ended itself after a reply.
_ENDED_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT, OUT_OF_MEMORY)


@dataclass(frozen=True)
class JudgeSettings:
    """How completions are judged."""

    #: Worker processes; 0 = one per usable core, at most 4.
    workers: int = 0
    #: Seconds of CPU time that one comparison may take.
    time_limit: float = 1.0
    #: Address space of one worker process, in MiB.
    memory_mb: int = 1024
    #: What the gold answers are: "math", "countdown" or "sudoku".
    kind: str = "math"

    def __post_init__(self) -> None:
        check_choice("judge kind", self.kind, KINDS)
        if self.workers < 0 or self.time_limit <= 0 or self.memory_mb < 512:
            raise UserError(
                f"judge settings are workers={self.workers}, time_limit={self.time_limit}, memory_mb={self.memory_mb}; "
                "expected workers of 0 or more, time_limit above 0 and memory_mb of at least 512"
            )

    @property
    def processes(self) -> int:
        """Worker processes that a pool with these settings runs."""
        return self.workers or min(4, len(os.sched_getaffinity(0)))


class _Job:
    """One comparison on its way: made by one worker, or again by another when the first was killed."""

    __slots__ = ("attempts", "frame", "key")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.frame = pack(key)
        self.attempts = 0


class _Worker:
    """One process, its pipes and the comparisons it was given but has not answered."""

    def __init__(self, settings: JudgeSettings) -> None:
        root = str(pathlib.Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", worker_module.__name__, str(settings.time_limit), str(settings.memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is the caller's to handle
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # sympy's order of terms is fixed
        )
        self.input: Any = self.process.stdin
        self.output: Any = self.process.stdout
        self.waiting: deque[_Job] = deque()
        self.load = 0
        self.received = bytearray()
        self.heard = time.monotonic()
        self.ready = False

    def fill(self, queue: deque[_Job]) -> None:
        """Sends comparisons from ``queue`` while they fit the pipe; where the process is gone, ``read`` notices."""
        while queue and (not self.waiting or self._has_room(queue[0])):
            job = queue.popleft()
            if not self.waiting:
                self.heard = time.monotonic()
            self.waiting.append(job)
            self.load += len(job.frame)
            with contextlib.suppress(OSError):
                self.input.write(job.frame)

    def _has_room(self, job: _Job) -> bool:
        return len(self.waiting) < _AHEAD and self.load + len(job.frame) <= _WINDOW

    def read(self) -> list[tuple[_Job, list[Any]]] | None:
        """The replies that have arrived, None when the process is gone."""
        part = os.read(self.output.fileno(), 65536)
        self.received += part
        self.heard = time.monotonic()
        replies = []
        for message in unpack(self.received):
            if message == ["ready"]:
                self.ready = True
                continue
            job = self.waiting.popleft()
            self.load -= len(job.frame)
            replies.append((job, message))
        return replies if part else None

    def end(self) -> int:
        """Kills and reaps the process; returns its exit status (negative: the signal that ended it)."""
        self.process.kill()
        status = self.process.wait()
        self.input.close()
        self.output.close()
        return status


class JudgePool:
    """Judges batches of completions in worker processes; start it before jax, close it or use it in a ``with``.

    Construction returns at once: the workers get ready in the background.
    """

    def __init__(self, settings: JudgeSettings = JudgeSettings()) -> None:
        self.settings = settings
        #: Comparisons stopped at a limit since the pool was made.
        self.timed_out = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], tuple[Comparison, bool]] = OrderedDict()
        self._barren = 0
        self._workers = [_Worker(settings) for _ in range(settings.processes)]
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (gold, completion) pairs, in order.

        Raises:
            UserError: the pool is closed, or its workers cannot start.
        """
        if not self._finalizer.alive:
            raise UserError("this JudgePool is closed; make a new one to judge more completions")
        quick = [judge_quickly(gold, text, self.settings.kind) for gold, text in items]
        keys = dict.fromkeys((each.gold, each.answer) for each in quick if isinstance(each, Open))
        with self._lock:
            results = self._compare(keys)
        verdicts = []
        for each in quick:
            if isinstance(each, Open):
                result, stopped = results[each.gold, each.answer]
                self.timed_out += stopped
                each = Verdict(result.equal, each.answer, result.reason, stopped)
            verdicts.append(each)
        return verdicts

    def close(self) -> None:
        """Ends and reaps the worker processes; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> "JudgePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compare(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[Comparison, bool]]:
        found = {key: self._known[key] for key in keys if key in self._known}
        jobs = [_Job(key) for key in keys if key not in found]
        try:
            found.update(self._run(jobs))
        except BaseException:
            # an interrupt leaves half-sent work behind: the next call starts with fresh workers
            for slot, worker in enumerate(self._workers):
                self._replace(slot, worker)
            raise
        for job in jobs:
            # What was stopped is compared anew in a later batch: no verdict depends on what this process has seen.
            if not found[job.key][1]:
                self._known[job.key] = found[job.key]
        while len(self._known) > _MEMORY:
            self._known.popitem(last=False)
        return found

    def _run(self, jobs: list[_Job]) -> dict[tuple[str, str], tuple[Comparison, bool]]:
        found: dict[tuple[str, str], tuple[Comparison, bool]] = {}
        queue = deque(jobs)
        while len(found) < len(jobs):
            for worker in self._workers:
                worker.fill(queue)
            for slot in self._ready():
                replies = self._workers[slot].read()
                if replies is None:
                    self._bury(slot, queue, found)
                for job, (equal, reason, stopped) in replies or ():
                    found[job.key] = Comparison(equal, reason), bool(stopped)
        return found

    def _ready(self) -> list[int]:
        """Slots whose worker has something to read (or is gone); kills one that has been silent for too long."""
        with selectors.DefaultSelector() as selector:
            for slot, worker in enumerate(self._workers):
                if worker.waiting:
                    selector.register(worker.output, selectors.EVENT_READ, slot)
            ready = [key.data for key, _ in selector.select(timeout=1.0)]
        for worker in self._workers:
            if worker.waiting and time.monotonic() - worker.heard > PATIENCE + 10 * self.settings.time_limit:
                worker.process.send_signal(signal.SIGXCPU)  # reported like the kernel's own limit
                worker.process.send_signal(signal.SIGCONT)
        return ready

    def _bury(self, slot: int, queue: deque[_Job], found: dict[tuple[str, str], tuple[Comparison, bool]]) -> None:
        """Replaces a worker that is gone: the comparison it was making is stopped or made again, the rest wait."""
        worker = self._workers[slot]
        jobs = worker.waiting
        status = self._replace(slot, worker)
        if jobs and worker.ready:
            jobs[0].attempts += 1
            if status not in _ENDED_OUTSIDE or jobs[0].attempts > _RETRIES:
                found[jobs.popleft().key] = Comparison(False, _cause(status)), True
        queue.extendleft(reversed(jobs))
        self._barren = 0 if worker.ready else self._barren + (status not in _ENDED_OUTSIDE)
        if self._barren > 4 * len(self._workers):
            raise UserError(
                f"judge workers end with status {status} before they answer; "
                f"run `python -m {worker_module.__name__} 1 1024` to see why"
            )

    def _replace(self, slot: int, worker: _Worker) -> int:
        status = worker.end()
        self._workers[slot] = _Worker(self.settings)
        return status


def _cause(status: int) -> str:
    if status in (-signal.SIGPROF, -signal.SIGXCPU):
        return "stopped at the time limit"
    return f"stopped: the worker ended with status {status}"


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.end()
