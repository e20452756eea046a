"""What the TFDS builders share: the features of a row and the key under which a built data set lies."""

import abc
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from igpo_jax.data.downloads import Downloads, Remote
from igpo_jax.data.examples import Example
from igpo_jax.data.files import file_sha256
from igpo_jax.data.settings import DataSettings

FIELDS = tuple(field.name for field in dataclasses.fields(Example))

#: Paths by role (`igpo_jax.data.sources.read_splits`).
Files = Mapping[str, tuple[pathlib.Path, ...]]


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A TFDS config that carries our settings and source files; its name is the key of the built data."""

    settings: DataSettings = dataclasses.field(default_factory=DataSettings)
    #: Local files by role; empty where nothing is read or the source is downloaded.
    files: Files = dataclasses.field(default_factory=dict)
    downloads: Downloads = dataclasses.field(default_factory=lambda: Downloads(pathlib.Path(), ""))


def content_key(settings: DataSettings, checksums: dict[str, str]) -> str:
    """Returns 16 hexadecimal digits that change with a dial or with a source file's content, not with its path."""
    dials = {**dataclasses.asdict(settings), "path": "", "cache": ""}
    text = json.dumps({"settings": dials, "files": checksums}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Files of a role beyond which their checksums are taken together.
_MANY = 20


def _named(role: str, checksums: list[str]) -> list[tuple[str, str]]:
    if len(checksums) == 1:
        return [(role, checksums[0])]
    if len(checksums) > _MANY:
        together = hashlib.sha256("".join(checksums).encode()).hexdigest()
        return [(f"{role} ({len(checksums)} files)", together)]
    return [(f"{role}-{number}", value) for number, value in enumerate(checksums)]


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder whose rows are `Example`; a subclass names its source files and says which rows each split has."""

    # Raise it whenever the same settings and files give other rows: it is part of the folder's name.
    VERSION = tfds.core.Version("2.0.0")
    #: What to do where a download fails, or what ``data.path`` has to be.
    HINT = "set data.path to its folder"

    def __init_subclass__(cls, **options: Any) -> None:
        # Our names must not enter TFDS's global list, which has a gsm8k of its own.
        super().__init_subclass__(skip_registration=True, **options)

    @classmethod
    def source_files(cls, settings: DataSettings) -> Files:
        """Returns the local files that the data set is built from, by role; nothing without ``settings.path``."""
        return {}

    @classmethod
    def remote_files(cls, settings: DataSettings) -> Mapping[str, tuple[Remote, ...]]:
        """Returns the files to download where there are no local ones, by role."""
        return {}

    @classmethod
    def checksums(cls, settings: DataSettings, downloads: Downloads) -> dict[str, str]:
        """Returns the sha256 of every source, by role and, where a role has several files, their number."""
        local = {role: [file_sha256(path) for path in paths] for role, paths in cls.source_files(settings).items()}
        if not local:
            remote = cls.remote_files(settings)
            local = {role: [downloads.sha256(one) for one in files] for role, files in remote.items()}
        return {name: value for role, values in local.items() for name, value in _named(role, values)}

    def files(self) -> Files:
        """The local files, downloaded where there are none."""
        config = self.builder_config
        if config.files:
            return config.files
        remote = self.remote_files(config.settings)
        return {role: tuple(config.downloads.fetch(one) for one in files) for role, files in remote.items()}

    @abc.abstractmethod
    def read_splits(self) -> tuple[dict[str, list[Example]], dict[str, Any]]:
        """Returns the rows of every split, and a report of what was read and dropped."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in FIELDS})
        # Rows stay in the order of the source, so that a row's place means the same on every machine.
        info = self.dataset_info_from_configs(
            features=features, metadata=tfds.core.MetadataDict(), disable_shuffling=True
        )
        # For a set that is not built yet TFDS would ask Google's bucket about it, and leave an empty temporary folder.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        splits, report = self.read_splits()
        self.info.metadata["report"] = report
        return {split: self._generate_examples(rows) for split, rows in splits.items() if rows}

    def _generate_examples(self, rows: list[Example]) -> Iterator[tuple[int, dict[str, str]]]:
        for row, example in enumerate(rows):
            yield row, dataclasses.asdict(example)
