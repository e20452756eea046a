"""Question sets by name, from a user's file, or of a training run."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from igpo_jax.data import DataSettings, Example, open_split
from igpo_jax.data.files import file_sha256, require_file
from igpo_jax.data.parsers import parse_gsm8k, parse_row
from igpo_jax.data.sources import read_splits
from igpo_jax.errors import UserError, named_as, nearest

#: Names that stand for another. The paper names no edition of AMC, but all its AMC scores are multiples of 1/640, as
#: 40 questions asked 16 times give.
ALIASES = {"amc": "amc23"}
#: The test split of the training run itself.
OWN = "own"
#: Suites whose answers are puzzles, which the judge checks otherwise.
PUZZLES = ("countdown", "sudoku")
#: Data sets with test questions of their own.
SUITES = ("gsm8k", "math500", "amc23", "amc22_23", "countdown", "sudoku")


@dataclasses.dataclass(frozen=True)
class Suite:
    """The questions of one suite."""

    name: str
    kind: str  # what the gold answers are: math, countdown or sudoku
    examples: tuple[Example, ...]
    total: int  # questions of the whole suite, of which --limit may have left the first
    sources: Mapping[str, str]  # sha256 of the source files, by role

    @property
    def limited(self) -> bool:
        """Whether this is a part of the suite only."""
        return len(self.examples) < self.total

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the sha256 of every id, question and gold answer, in order."""
        rows = [[example.id, example.question, example.gold] for example in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def parse_names(text: str) -> list[str]:
    """The suites of ``--suite``, aliases resolved.

    Raises:
      UserError: there is none, one is unknown, or one is named twice.
    """
    names = [ALIASES.get(part, part) for part in (part.strip() for part in text.split(",")) if part]
    if not names:
        raise UserError(f"--suite names no suite; give one or more of {', '.join(known())}, or a .jsonl file")
    for name in names:
        if not name.endswith(".jsonl") and name not in known():
            raise UserError(
                f"--suite names '{name}', which is not a suite{nearest(name, known())}; a file of your own questions "
                "ends in .jsonl"
            )
    labels = [label_of(name) for name in names]
    if len(set(labels)) < len(labels):
        raise UserError(f"--suite names '{max(labels, key=labels.count)}' twice; name every suite once")
    return names


def known() -> list[str]:
    """The names that ``--suite`` takes, files aside."""
    return [*SUITES, *ALIASES, OWN]


def label_of(name: str) -> str:
    """What a suite is called in reports: a file by its stem."""
    if not name.endswith(".jsonl"):
        return name
    return re.sub(r"[^\w.-]", "_", pathlib.Path(name).stem) or "file"


def parse_places(texts: list[str], names: list[str]) -> dict[str, str]:
    """The paths of ``--data NAME=PATH``, by suite.

    Raises:
      UserError: an entry has no path, or names a suite that is not asked for.
    """
    places = {}
    for entry in (part for text in texts for part in text.split(",") if part):
        name, mark, path = entry.partition("=")
        name = ALIASES.get(name, name)
        if not mark or not path:
            raise UserError(f"--data is '{entry}', expected NAME=PATH as in --data gsm8k=data/gsm8k")
        if name not in names:
            raise UserError(f"--data names '{name}', but --suite asks for {', '.join(names)}")
        if not pathlib.Path(path).exists():
            raise UserError(
                f"--data {name}={path} does not exist; name its file or folder, or leave --data out to download it"
            )
        places[name] = path
    return places


def load(name: str, place: str, cache: pathlib.Path, limit: int, own: DataSettings | None = None) -> Suite:
    """Reads a suite.

    Args:
      name: from ``parse_names``.
      place: its folder or file on this machine; empty downloads it where that is possible, or for "own" takes it from
        where the run had it.
      cache: folder for built data sets and downloads.
      limit: questions to keep, from the first; 0 keeps all.
      own: the data settings of the training run, for the suite "own".

    Raises:
      UserError: a file is missing, has a bad row, or has no question.
    """
    label = label_of(name)
    if name.endswith(".jsonl"):
        examples, sources = _from_file(pathlib.Path(name), "--suite names a file of questions")
    elif name == OWN:
        if own is None:
            raise UserError(
                f"--suite {OWN} is the test split of a training run, but --checkpoint is no run directory; "
                f"name one of {', '.join(known())}"
            )
        moved: dict[str, Any] = {"test_path" if own.test_name else "path": place} if place else {}
        examples, sources = _from_split(label, dataclasses.replace(own, **moved), cache)
    elif name == "gsm8k" and place.endswith(".jsonl"):
        examples, sources = _from_gsm8k_file(pathlib.Path(place))
    else:
        examples, sources = _from_split(label, DataSettings(name=name, path=place), cache)
    kind = (own.test_name or own.name) if name == OWN and own else name
    _check_ids(label, examples)
    kept = examples[:limit] if limit else examples
    return Suite(label, kind if kind in PUZZLES else "math", tuple(kept), len(examples), sources)


def _from_split(label: str, settings: DataSettings, cache: pathlib.Path) -> tuple[list[Example], dict[str, str]]:
    with named_as({"data.path": f"--data {label}=PATH"}):
        split = open_split(settings, "test", cache)
    return list(split), dict(split.report["sha256"])


def _from_file(path: pathlib.Path, hint: str) -> tuple[list[Example], dict[str, str]]:
    require_file(path, hint)
    parser = functools.partial(parse_row, need_reasoning=False)
    splits, _ = read_splits({"test": path}, {"test": parser}, DataSettings(name="jsonl"))
    return splits["test"], {"test": file_sha256(path)}


def _from_gsm8k_file(path: pathlib.Path) -> tuple[list[Example], dict[str, str]]:
    """The test file alone, as it is released: an evaluation has no need of the training questions."""
    require_file(path, "--data gsm8k=PATH is a folder with train.jsonl and test.jsonl, or test.jsonl alone")
    splits, _ = read_splits({"test": path}, {"test": parse_gsm8k}, DataSettings(name="gsm8k"))
    return splits["test"], {"test": file_sha256(path)}


def _check_ids(label: str, examples: list[Example]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"suite {label} has the id '{example.id}' twice; every question needs an id of its own")
        seen.add(example.id)
