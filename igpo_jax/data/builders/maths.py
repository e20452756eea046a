"""TFDS builders of MATH (Hendrycks et al. 2021; MIT licence) and of the evaluation sets MATH-500 and AMC."""

import abc
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from igpo_jax.data.builders.base import ExampleBuilder, Files
from igpo_jax.data.downloads import Remote
from igpo_jax.data.examples import Example
from igpo_jax.data.files import ENDINGS, require_file
from igpo_jax.data.parsers import parse_amc, parse_math
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import Parser, read_splits
from igpo_jax.errors import UserError

_GITHUB = "https://raw.githubusercontent.com"

#: The file of PRM800K's split; this sha256 and size are those of OpenAI's own pointer to it (prm800k/math_splits).
MATH500 = Remote(
    f"{_GITHUB}/hkust-nlp/simpleRL-reason/cf1c7858bfc145a27aa733e75d930d34f0d318a6"
    "/examples/simplelr_math_eval/data/math500/test.jsonl",
    "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
)
AMC23 = Remote(
    f"{_GITHUB}/QwenLM/Qwen2.5-Math/a45202bd16f1ec06f433442dc1152d0074773465/evaluation/data/amc23/test.jsonl",
    "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4",
)
AMC22_23 = Remote(
    f"{_GITHUB}/agentica-project/deepscaler/95ef74ffee001cce89463f2d61dfdce1d03576c1/deepscaler/data/test/amc.json",
    "2666a217cb566efb77ebfce61841d5d8855d4b4be89633b29df3a43dcfd942dd",
)

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
#: MATH's training problems with their solutions, one file for each subject.
MATH_TRAIN = tuple(
    Remote(f"https://huggingface.co/datasets/EleutherAI/hendrycks_math/resolve/main/{s}/train-00000-of-00001.parquet")
    for s in SUBJECTS
)


def files_below(path: pathlib.Path, stem: str, hint: str) -> tuple[pathlib.Path, ...]:
    """Returns the file ``path``, or the files of a folder whose names begin with ``stem``, any depth down, in order.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        return (require_file(path, hint),)
    found = tuple(sorted(file for file in path.rglob(f"{stem}*") if file.suffix in ENDINGS))
    if not found:
        raise UserError(f"{path} holds no file {stem}*.jsonl, .json, .csv or .parquet; {hint}")
    return found


class _TestSet(ExampleBuilder):
    """Questions for evaluation alone, in one file."""

    REMOTE: ClassVar[Remote]
    STEMS: ClassVar[Sequence[str]]
    #: Questions of the released file.
    COUNT: ClassVar[int]

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the local file, given itself or by its folder."""
        if not settings.path:
            return {}
        path = pathlib.Path(settings.path)
        hint = f"data.path must be the file {cls.REMOTE.name} or its folder, or empty to download it"
        if path.is_dir():
            path = next((path / stem for stem in cls.STEMS if (path / stem).is_file()), path / cls.STEMS[0])
        return {"test": (require_file(path, hint),)}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the published file."""
        return {"test": (cls.REMOTE,)}

    @abc.abstractmethod
    def parser(self) -> Parser:
        """Returns what reads a row."""

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns the split test, every row of it, and whether it has as many questions as the published file."""
        splits, report = read_splits(self.files(), {"test": self.parser()}, self.builder_config.settings)
        return splits, report | {"published_questions": self.COUNT}


class Math500(_TestSet):
    """The 500 test problems of MATH that PRM800K's authors held out."""

    REMOTE, STEMS, COUNT = MATH500, ("test.jsonl", "math500.jsonl"), 500
    HINT = "set data.path to MATH-500's test.jsonl"

    def parser(self) -> Parser:
        """Returns `parse_math`."""
        return parse_math


class Amc23(_TestSet):
    """40 problems of AMC 12 2023 with a numeric answer."""

    REMOTE, STEMS, COUNT = AMC23, ("test.jsonl", "amc23.jsonl"), 40
    HINT = "set data.path to the 40 problems' test.jsonl"

    def parser(self) -> Parser:
        """Returns `parse_amc`."""
        return parse_amc


class Amc22And23(_TestSet):
    """83 problems of AMC 12 2022 and 2023 with a whole answer, the 40 of 2023 among them."""

    REMOTE, STEMS, COUNT = AMC22_23, ("amc.json", "amc22_23.json"), 83
    HINT = "set data.path to the 83 problems' amc.json"

    def parser(self) -> Parser:
        """Returns `parse_amc`."""
        return parse_amc


class MathTrain(ExampleBuilder):
    """MATH's training problems; where the files hold answers without solutions, the rows are for RL only."""

    HINT = "set data.path to MATH's training files (problem, and solution or answer)"

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the given file, or the folder's files called train* or math*, or all below its folder train."""
        if not settings.path:
            return {}
        path, hint = pathlib.Path(settings.path), f"{cls.HINT}, or leave it empty to download them"
        original = sorted((path / "train").rglob("*.json"))
        if original:
            return {"train": tuple(original)}
        if path.is_dir() and not any(path.rglob("train*.*")):
            return {"train": files_below(path, "math", hint)}
        return {"train": files_below(path, "train", hint)}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns one file for each subject."""
        return {"train": MATH_TRAIN}

    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns splits sft and rl, and test where ``test_fraction`` holds some questions out."""
        settings = self.builder_config.settings
        role = "all" if settings.test_fraction else "train"
        return read_splits({role: self.files()["train"]}, {role: parse_math}, settings)
