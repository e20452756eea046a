"""Programs compiled before the first batch, so that what does not fit or does not compile shows in minute one."""

import time
from collections.abc import Callable
from typing import Any

import jax

from igpo_jax.errors import UserError
from igpo_jax.parallel import clock
from igpo_jax.training import console
from igpo_jax.training.files import in_words


class WarmUp:
    """Compiles a stage's programs one by one; says how long it took and what they need.

    Args:
      stage: name for the console and for errors.
    """

    def __init__(self, stage: str):
        self._stage, self._start = stage, time.perf_counter()
        self._compiles = clock.compiles()
        self._before = self._compiles.programs
        self._done: list[str] = []

    def run(self, what: str, work: Callable[[], Any]) -> Any:
        """Calls ``work``, which compiles and runs programs on data without meaning; returns its result.

        Raises:
          UserError: there is too little device memory.
        """
        try:
            result = jax.block_until_ready(work())
        except jax.errors.JaxRuntimeError as error:
            raise self._too_large(what, str(error)) from error
        self._done.append(what)
        return result

    def compile(self, what: str, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Compiles without running; the call with the same shapes finds the program made.

        Raises:
          UserError: it needs more memory than a device has.
        """
        try:
            compiled = lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise self._too_large(what, str(error)) from error
        memory = compiled.memory_analysis()
        if memory is None:
            self._done.append(what)
            return
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
        needed += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if limit and needed > limit:
            raise self._too_large(what, f"it needs {in_words(needed)} of the {in_words(limit)} of a device")
        self._done.append(f"{what} ({in_words(needed)} a device)")

    def note(self) -> None:
        """Prints what was compiled and how long it took."""
        seconds = console.format_duration(time.perf_counter() - self._start)
        programs = self._compiles.programs - self._before
        console.note(f"{self._stage}: {', '.join(self._done)} compiled in {seconds} ({programs} programs)")

    def _too_large(self, what: str, why: str) -> Exception:
        """The sentence for a program that does not fit; other errors stay what they are."""
        first = why.splitlines()[0][:300]
        if not any(word in why for word in ("RESOURCE_EXHAUSTED", "out of memory", "it needs")):
            return jax.errors.JaxRuntimeError(why)
        return UserError(
            f"{self._stage}: {what} does not fit into the device's memory ({first}); take smaller micro-batches or "
            "rows_per_program, compute.remat='full', or LoRA; python -m igpo_jax.plan shows what fits"
        )
