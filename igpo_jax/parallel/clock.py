"""Where the seconds go: phases of wall time, and within them what jax spends on compiling."""

import contextlib
import threading
import time
from collections.abc import Iterator

import jax

#: Durations that jax reports while it makes a program: tracing, lowering, and the compiler itself.
_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Compiles:
    """Programs that the compiler made in this process so far, and the seconds they took from Python to machine code.

    Traces nest (a program inside a program reports its own), so ``seconds`` may exceed the wall time of one program a
    little; ``programs`` counts what reached the compiler, a program read from the compilation cache included.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _EVENTS[1:]:
            with self._lock:
                self.seconds += duration_secs
                self.programs += event == _EVENTS[-1]


_compiles: list[Compiles] = []


def compiles() -> Compiles:
    """The counts of this process; listening begins with the first call."""
    if not _compiles:
        _compiles.append(Compiles())
    return _compiles[0]


class Phases:
    """Seconds by phase; compiling counts as a phase of its own and not in the one it happened in.

    Phases do not nest. A phase must end with something that waits for its results, or its time is counted where the
    devices are waited for.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._compiles = compiles()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's wall time under ``name``, less what was compiled in it."""
        start, compiled = time.perf_counter(), self._compiles.seconds
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            compiling = min(elapsed, self._compiles.seconds - compiled)
            self.add(name, elapsed - compiling)
            self.add("compile", compiling)

    def add(self, name: str, seconds: float) -> None:
        """Counts ``seconds`` under ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
