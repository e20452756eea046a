"""TFDS builder of OpenR1-Math-220k's default split (Apache-2.0), whose rewritten traces are IGPO's SFT data."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.builders.maths import files_below
from igpo_jax.data.downloads import Remote
from igpo_jax.data.examples import Example
from igpo_jax.data.parsers import parse_openr1
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import read_splits

_PARTS = 10
REMOTE = tuple(
    Remote(
        "https://huggingface.co/datasets/open-r1/OpenR1-Math-220k/resolve/main/data/"
        f"train-{part:05d}-of-{_PARTS:05d}.parquet"
    )
    for part in range(_PARTS)
)
#: Rows of the default split, which the paper calls 94k.
PUBLISHED_ROWS = 93_733


class OpenR1(ExampleBuilder):
    """Competition problems with DeepSeek-R1's traces; the first one that was verified as correct is taken."""

    HINT = "set data.path to a folder with the default split's train-*.parquet"

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the given file, or the folder's files called train*, at any depth."""
        if not settings.path:
            return {}
        hint = f"{cls.HINT}, or leave it empty to download them"
        return {"train": files_below(pathlib.Path(settings.path), "train", hint)}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the ten parts of the default split."""
        return {"train": REMOTE}

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft and rl, and test where ``test_fraction`` holds some questions out."""
        settings = self.builder_config.settings
        role = "all" if settings.test_fraction else "train"
        parser = functools.partial(parse_openr1, trace=settings.trace)
        splits, report = read_splits({role: self.files()["train"]}, {role: parser}, settings)
        return splits, report | {"trace": settings.trace, "published_rows": PUBLISHED_ROWS}
