"""The TFDS builders: one module per data set or family."""

import pathlib
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, SourceConfig, content_key
from igpo_jax.data.builders.chain import Chain
from igpo_jax.data.builders.gsm8k import Gsm8k
from igpo_jax.data.builders.jsonl import Jsonl
from igpo_jax.data.builders.maths import Amc22And23, Amc23, Math500, MathTrain
from igpo_jax.data.builders.metamath import MetaMath
from igpo_jax.data.builders.openr1 import OpenR1
from igpo_jax.data.builders.puzzles import Countdown, Sudoku
from igpo_jax.data.downloads import Downloads
from igpo_jax.data.settings import DataSettings

BUILDERS: dict[str, type[ExampleBuilder]] = {
    "chain": Chain,
    "gsm8k": Gsm8k,
    "math_train": MathTrain,
    "metamath": MetaMath,
    "openr1": OpenR1,
    "countdown": Countdown,
    "sudoku": Sudoku,
    "jsonl": Jsonl,
    "math500": Math500,
    "amc23": Amc23,
    "amc22_23": Amc22And23,
}


def make_builder(settings: DataSettings, cache_dir: pathlib.Path) -> tuple[Any, dict[str, str]]:
    """Returns the TFDS builder of one data set, stored under ``cache_dir``, and the sha256 of its sources by role.

    Raises:
        UserError: a source file is missing.
    """
    builder = BUILDERS[settings.name]
    downloads = Downloads(cache_dir / "downloads", builder.HINT)
    checksums = builder.checksums(settings, downloads)
    config = SourceConfig(
        name=content_key(settings, checksums),
        settings=settings,
        files=builder.source_files(settings),
        downloads=downloads,
    )
    # Without TensorFlow only the array_record format can be read back.
    return builder(data_dir=str(cache_dir), config=config, file_format="array_record"), checksums
