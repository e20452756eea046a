"""When a checkpoint is due and which ones are kept."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from igpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When to save and what to keep.

    Raises:
      UserError: for a value outside its range.
    """

    every: int = 100  #: save at every step that this divides; 0 = only where a save is forced
    keep_last: int = 2  #: how many of the newest checkpoints to keep
    keep_best: bool = True  #: keep the checkpoint with the greatest metric as well

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"every is {self.every}, expected 0 (only forced saves) or more")
        if self.keep_last < 1:
            raise UserError(f"keep_last is {self.keep_last}, expected 1 or more")


class Keep:
    """Orbax's preservation policy for keep-last-n and keep-best, on metrics that this module reads itself.

    Orbax reads its own metric files when it starts, and a damaged one would stop the run.
    """

    def __init__(self, settings: CheckpointSettings) -> None:
        self.settings = settings
        self.metrics: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints stay: the last few and the best."""
        del context
        steps = [info.step for info in checkpoints]
        # The one just saved comes last. Steps beyond it are a future that the run left when it resumed before them.
        past = sorted(step for step in steps if step <= steps[-1])
        kept = {*past[-self.settings.keep_last :], self.best(past) if self.settings.keep_best else None}
        return [step in kept for step in steps]

    def best(self, steps: Sequence[int]) -> int | None:
        """Returns the step with the greatest metric, the later one of equals; None where no step has one."""
        scored = [(self.metrics[step], step) for step in steps if step in self.metrics]
        return max(scored)[1] if scored else None
