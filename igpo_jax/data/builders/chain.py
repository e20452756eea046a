"""TFDS builder of the chain task."""

from typing import Any

from igpo_jax.data import chain
from igpo_jax.data.builders.base import ExampleBuilder
from igpo_jax.data.examples import Example


class Chain(ExampleBuilder):
    """Word problems over a three-digit number, made from a seed; every trace is recomputed while building."""

    def read_splits(self, download_manager: Any) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft, rl and test; they share no question."""
        settings = self.builder_config.settings
        return chain.generate(settings), {"seed": settings.seed}
