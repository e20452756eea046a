"""TFDS builder of the chain task."""

import pathlib
from typing import Any

from igpo_jax.data import chain
from igpo_jax.data.builders.base import ExampleBuilder
from igpo_jax.data.downloads import Downloads
from igpo_jax.data.examples import Example
from igpo_jax.data.files import file_sha256
from igpo_jax.data.settings import DataSettings


class Chain(ExampleBuilder):
    """Word problems over a three-digit number, made from a seed; every trace is recomputed while building."""

    @classmethod
    def checksums(cls, settings: DataSettings, downloads: Downloads) -> dict[str, str]:
        """Returns the sha256 of the generator, which is this data set's source: an edit of it builds the set anew."""
        return {"generator": file_sha256(pathlib.Path(chain.__file__))}

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft, rl and test; they share no question."""
        settings = self.builder_config.settings
        return chain.generate(settings), {"seed": settings.seed}
