"""TFDS builder of a user's own questions in JSON lines."""

import functools
import pathlib
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.examples import Example
from igpo_jax.data.files import require_file
from igpo_jax.data.parsers import parse_row
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import read_splits
from igpo_jax.errors import UserError

_ROLES = ("sft", "rl", "train", "test")


class Jsonl(ExampleBuilder):
    """Rows of question, answer and reasoning: one file for all splits, or a folder with a file for each."""

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the one file under the role ``all``, or the folder's files by their names."""
        if not settings.path:
            raise UserError("data.path is empty, but data.name is 'jsonl'; set it to a .jsonl file or a folder of them")
        path = pathlib.Path(settings.path)
        if not path.is_dir():
            return {"all": (require_file(path, "data.path must be a .jsonl file or a folder of them"),)}
        files = {role: (path / f"{role}.jsonl",) for role in _ROLES if (path / f"{role}.jsonl").is_file()}
        if not files:
            raise UserError(f"{path} holds none of sft.jsonl, rl.jsonl, train.jsonl and test.jsonl; add at least one")
        if "train" in files and ("sft" in files or "rl" in files):
            raise UserError(f"{path} holds train.jsonl beside sft.jsonl or rl.jsonl; keep train.jsonl or the other two")
        return files

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns the splits of the files; only files named rl or test may leave out the reasoning."""
        files = self.files()
        parsers = {role: functools.partial(parse_row, need_reasoning=role not in ("test", "rl")) for role in files}
        return read_splits(files, parsers, self.builder_config.settings)
