"""The TFDS builders: one module per data set."""

import pathlib
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, SourceConfig, content_key
from igpo_jax.data.builders.chain import Chain
from igpo_jax.data.builders.gsm8k import Gsm8k
from igpo_jax.data.builders.jsonl import Jsonl
from igpo_jax.data.settings import DataSettings

BUILDERS: dict[str, type[ExampleBuilder]] = {"chain": Chain, "gsm8k": Gsm8k, "jsonl": Jsonl}


def make_builder(settings: DataSettings, cache_dir: pathlib.Path) -> tuple[Any, dict[str, str]]:
    """Returns the TFDS builder of ``settings``, stored under ``cache_dir``, and the sha256 of its sources by role.

    Raises:
        UserError: a source file is missing.
    """
    builder = BUILDERS[settings.name]
    checksums = builder.checksums(settings)
    key = content_key(settings, checksums)
    config = SourceConfig(name=key, settings=settings, files=builder.source_files(settings))
    # Without TensorFlow only the array_record format can be read back.
    return builder(data_dir=str(cache_dir), config=config, file_format="array_record"), checksums
