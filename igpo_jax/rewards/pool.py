"""Worker processes that judge completions and can be killed without losing a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

from igpo_jax.errors import UserError, check_choice
from igpo_jax.rewards.verdict import Verdict, judge_one


@dataclass(frozen=True)
class JudgeSettings:
    """How completions are judged."""

    #: Worker processes; 0 = one per usable core, at most 4.
    workers: int = 0
    #: Seconds of CPU time that one comparison may take.
    time_limit: float = 5.0
    #: Memory of one worker process, in MiB.
    memory_mb: int = 2048
    #: What the gold answers are: "math", "countdown" or "sudoku".
    kind: str = "math"

    def __post_init__(self) -> None:
        check_choice("judge kind", self.kind, ("math", "countdown", "sudoku"))
        if self.workers < 0 or self.time_limit <= 0 or self.memory_mb < 256:
            raise UserError(
                f"judge settings are workers={self.workers}, time_limit={self.time_limit}, memory_mb={self.memory_mb};"
                " expected workers >= 0, time_limit > 0 and memory_mb >= 256"
            )


class JudgePool:
    """Judges batches of completions; start it before jax and close it (or use it as a context manager)."""

    def __init__(self, settings: JudgeSettings = JudgeSettings()) -> None:
        self.settings = settings

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (gold, completion) pairs, in order."""
        return [judge_one(gold, text, self.settings.kind) for gold, text in items]

    def close(self) -> None:
        """Ends the worker processes; further calls do nothing."""

    def __enter__(self) -> "JudgePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
