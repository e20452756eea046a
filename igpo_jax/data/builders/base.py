"""What the three TFDS builders share: the features of a row and the key under which a built data set lies."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings

FIELDS = tuple(field.name for field in dataclasses.fields(Example))


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A TFDS config that carries our settings; its name is the key of the built data."""

    settings: DataSettings = dataclasses.field(default_factory=DataSettings)


def content_key(values: dict[str, Any]) -> str:
    """Returns 16 hexadecimal digits that change with any of ``values``: a changed file or dial builds anew."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder whose rows are `Example`; a subclass says in ``read_splits`` which rows each split has."""

    VERSION = tfds.core.Version("1.0.0")
    # Registering would add our names to TFDS's global list, where `chain` or `jsonl` may clash with others.
    SKIP_REGISTERING = True

    @property
    def settings(self) -> DataSettings:
        """The settings that this data set is built from."""
        return self.builder_config.settings

    def read_splits(self, download_manager: Any) -> dict[str, list[Example]]:
        """Returns the rows of every split."""
        raise TypeError(f"{type(self).__name__} must define read_splits")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in FIELDS})
        # Rows stay in the order of the source, so that a row's place means the same on every machine.
        return self.dataset_info_from_configs(
            features=features, metadata=tfds.core.MetadataDict(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        return {split: self._generate_examples(rows) for split, rows in self.read_splits(dl_manager).items() if rows}

    def _generate_examples(self, rows: list[Example]) -> Iterator[tuple[int, dict[str, str]]]:
        for row, example in enumerate(rows):
            yield row, dataclasses.asdict(example)
