"""TFDS builder of GSM8K (Cobbe et al. 2021, arXiv 2110.14168; MIT licence), from local files or the release."""

import pathlib
from collections.abc import Mapping
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.downloads import Remote
from igpo_jax.data.examples import Example
from igpo_jax.data.files import require_file
from igpo_jax.data.parsers import parse_gsm8k
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import read_splits

_COMMIT = "3101c7d5072418e28b9008a6636bde82a006892c"
URL = f"https://raw.githubusercontent.com/openai/grade-school-math/{_COMMIT}/grade_school_math/data/"
#: sha256 of the released files: 7473 training and 1319 test questions.
RELEASED = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}


class Gsm8k(ExampleBuilder):
    """Grade-school word problems with written solutions; train is divided into sft and rl, test stays whole."""

    HINT = "set data.path to a folder with GSM8K's train.jsonl and test.jsonl"

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns train.jsonl and test.jsonl of ``settings.path``, or nothing where they are to be downloaded."""
        if not settings.path:
            return {}
        folder = pathlib.Path(settings.path)
        hint = "data.path must be a folder with GSM8K's train.jsonl and test.jsonl, or empty to download them"
        return {role: (require_file(folder / f"{role}.jsonl", hint),) for role in RELEASED}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the released files."""
        return {role: (Remote(f"{URL}{role}.jsonl", sha256),) for role, sha256 in RELEASED.items()}

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft, rl and test."""
        files = self.files()
        return read_splits(files, dict.fromkeys(files, parse_gsm8k), self.builder_config.settings)
