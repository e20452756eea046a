"""What the three TFDS builders share: the features of a row and the key under which a built data set lies."""

import abc
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import file_sha256

FIELDS = tuple(field.name for field in dataclasses.fields(Example))


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A TFDS config that carries our settings and source files; its name is the key of the built data."""

    settings: DataSettings = dataclasses.field(default_factory=DataSettings)
    #: Path by role (`igpo_jax.data.sources.read_splits`); empty where nothing is read or the source is downloaded.
    files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)


def content_key(settings: DataSettings, checksums: dict[str, str]) -> str:
    """Returns 16 hexadecimal digits that change with a dial or with a source file's content, not with its path."""
    dials = {**dataclasses.asdict(settings), "path": ""}
    text = json.dumps({"settings": dials, "files": checksums}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder whose rows are `Example`; a subclass names its source files and says which rows each split has."""

    # Raise it whenever the same settings and files give other rows: it is part of the folder's name.
    VERSION = tfds.core.Version("1.0.0")

    def __init_subclass__(cls, **options: Any) -> None:
        # Our names must not enter TFDS's global list, which has a gsm8k of its own.
        super().__init_subclass__(skip_registration=True, **options)

    @classmethod
    def source_files(cls, settings: DataSettings) -> dict[str, pathlib.Path]:
        """Returns the local files that the data set is built from, by role."""
        return {}

    @classmethod
    def checksums(cls, settings: DataSettings) -> dict[str, str]:
        """Returns the sha256 of every source, by role."""
        return {role: file_sha256(path) for role, path in cls.source_files(settings).items()}

    @abc.abstractmethod
    def read_splits(self, download_manager: Any) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns the rows of every split, and a report of what was read and dropped."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in FIELDS})
        # Rows stay in the order of the source, so that a row's place means the same on every machine.
        return self.dataset_info_from_configs(
            features=features, metadata=tfds.core.MetadataDict(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        splits, report = self.read_splits(dl_manager)
        self.info.metadata["report"] = report
        return {split: self._generate_examples(rows) for split, rows in splits.items() if rows}

    def _generate_examples(self, rows: list[Example]) -> Iterator[tuple[int, dict[str, str]]]:
        for row, example in enumerate(rows):
            yield row, dataclasses.asdict(example)
