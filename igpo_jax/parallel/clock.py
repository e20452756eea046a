"""Where the seconds go: phases of wall time, and within them what jax spends on compiling."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator

import jax

#: Durations that jax reports while it makes a program: lowering, and the compiler itself. Those of tracing nest, one
#: function's in another's, and would count twice.
_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Compiles:
    """Programs that the compiler made in this process so far, and the seconds they took.

    A program that is read from the compilation cache counts like one that is made.
    """

    def __init__(self) -> None:
        self.by_name: collections.Counter[str] = collections.Counter()  #: programs by the function that was compiled
        self.seconds = 0.0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    @property
    def programs(self) -> int:
        """All programs."""
        return self.by_name.total()

    def _heard(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event in _EVENTS:
            with self._lock:
                self.seconds += duration_secs
                if event == _EVENTS[-1]:
                    name = str(about.get("fun_name", ""))
                    self.by_name[name.removeprefix("jit(").removesuffix(")")] += 1


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
