"""The TFDS builders: one module per data set."""

import dataclasses
import pathlib
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, SourceConfig, content_key
from igpo_jax.data.builders.chain import Chain
from igpo_jax.data.settings import DataSettings

BUILDERS: dict[str, type[ExampleBuilder]] = {"chain": Chain}


def make_builder(settings: DataSettings, cache_dir: pathlib.Path) -> Any:
    """Returns the TFDS builder of ``settings``, stored under ``cache_dir`` by the key of its settings and source."""
    builder = BUILDERS[settings.name]
    key = content_key({"settings": dataclasses.asdict(settings)})
    # Without TensorFlow only the array_record format can be read back.
    return builder(
        data_dir=str(cache_dir), config=SourceConfig(name=key, settings=settings), file_format="array_record"
    )
