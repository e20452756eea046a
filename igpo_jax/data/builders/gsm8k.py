"""TFDS builder of GSM8K (Cobbe et al. 2021, arXiv 2110.14168; MIT licence), from local files or the release."""

import pathlib
import urllib.request
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder
from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import file_sha256, parse_gsm8k, read_splits, require_file
from igpo_jax.errors import UserError

_COMMIT = "3101c7d5072418e28b9008a6636bde82a006892c"
URL = f"https://raw.githubusercontent.com/openai/grade-school-math/{_COMMIT}/grade_school_math/data/"
#: sha256 of the released files: 7473 training and 1319 test questions.
RELEASED = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}

_PROBE_SECONDS = 20


class Gsm8k(ExampleBuilder):
    """Grade-school word problems with written solutions; train is divided into sft and rl, test stays whole."""

    @classmethod
    def source_files(cls, settings: DataSettings) -> dict[str, pathlib.Path]:
        """Returns train.jsonl and test.jsonl of ``settings.path``, or nothing where they are to be downloaded."""
        if not settings.path:
            return {}
        folder = pathlib.Path(settings.path)
        hint = "data.path must be a folder with GSM8K's train.jsonl and test.jsonl, or empty to download them"
        return {role: require_file(folder / f"{role}.jsonl", hint) for role in RELEASED}

    @classmethod
    def checksums(cls, settings: DataSettings) -> dict[str, str]:
        """Returns the sha256 of the local files, or of the released ones where they are to be downloaded."""
        return super().checksums(settings) or dict(RELEASED)

    def read_splits(self, download_manager: Any) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft, rl and test."""
        config = self.builder_config
        files = config.files or _download(download_manager)
        return read_splits(files, dict.fromkeys(files, parse_gsm8k), config.settings)


def _download(download_manager: Any) -> dict[str, pathlib.Path]:
    urls = {role: f"{URL}{role}.jsonl" for role in RELEASED}
    try:
        # TFDS tries a host that it cannot reach for minutes; this says so in seconds.
        urllib.request.urlopen(urls["test"], timeout=_PROBE_SECONDS).close()
        files = download_manager.download(urls)
    except Exception as error:
        # Whatever the network raised, the way out is the same.
        raise UserError(
            f"GSM8K could not be downloaded from {URL} ({type(error).__name__}: {error}); fetch train.jsonl and"
            " test.jsonl yourself and set data.path to their folder"
        ) from error
    for role, path in files.items():
        found = file_sha256(path)
        if found != RELEASED[role]:
            # Otherwise the next run would take the bad copy from the download folder.
            pathlib.Path(path).unlink()
            raise UserError(
                f"{urls[role]} arrived with sha256 {found}, expected {RELEASED[role]}; try again, or fetch the file"
                " yourself and set data.path"
            )
    return {role: pathlib.Path(path) for role, path in files.items()}
