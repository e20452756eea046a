"""TFDS builder of MetaMathQA's "AnsAug" rows (Yu et al. 2023, arXiv 2309.12284; MIT licence): IGPO's RL questions."""

import pathlib
from collections.abc import Mapping
from typing import Any

from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.downloads import Remote
from igpo_jax.data.examples import Example
from igpo_jax.data.files import require_file
from igpo_jax.data.parsers import Parsed, parse_metamath
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import read_splits

FILE = "MetaMathQA-395K.json"
REMOTE = Remote(f"https://huggingface.co/datasets/meta-math/MetaMathQA/resolve/main/{FILE}")
#: Unique questions that the paper counts (arXiv 2509.10396).
PAPER_COUNT = 12_794


class _FirstOfEach:
    """Keeps the first row of each question, compared letter by letter, as the released code does."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, row: dict[str, Any], place: str) -> Parsed | str:
        parsed = parse_metamath(row, place)
        if isinstance(parsed, str) and parsed == "not_ansaug":
            return parsed
        question = row["query"]
        if question in self.seen:
            return "repeated_question"
        self.seen.add(question)
        return parsed


class MetaMath(ExampleBuilder):
    """Questions of GSM8K and MATH with a teacher's solutions, exact repetitions removed."""

    HINT = f"set data.path to {FILE}"

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the given file, or ``MetaMathQA-395K.json`` of the given folder."""
        if not settings.path:
            return {}
        path = pathlib.Path(settings.path)
        path = path / FILE if path.is_dir() else path
        return {"train": (require_file(path, f"data.path must be {FILE} or its folder, or empty to download it"),)}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the file on the hub."""
        return {"train": (REMOTE,)}

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft and rl (and test, where some are held out); the report has the number of questions."""
        settings, first = self.builder_config.settings, _FirstOfEach()
        role = "all" if settings.test_fraction else "train"
        splits, report = read_splits({role: self.files()["train"]}, {role: first}, settings)
        return splits, report | {"unique_questions": len(first.seen), "paper_counts": PAPER_COUNT}
