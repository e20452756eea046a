"""The files of a LLaDA checkpoint in Hugging Face layout: found, held against each other, read one tensor at a time.

Only headers are read at first, so a damaged checkpoint is refused before any work is done.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert import layout, shards
from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"

Path = str | os.PathLike[str]


def is_checkpoint_dir(folder: pathlib.Path) -> bool:
    """Whether a folder looks like a checkpoint in Hugging Face layout: config.json beside weights or their index."""
    weights = (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX)
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; a UserError names the file where it is missing or is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; pass the folder of a downloaded checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object; download the file again")
    return values


def load_config(directory: Path) -> ModelConfig:
    """Reads ``config.json`` of a checkpoint folder.

    Raises:
      UserError: the file is missing, not JSON, or describes a model that this code does not compute.
    """
    path = pathlib.Path(directory) / "config.json"
    values = read_json(path)
    if values.get("model_type") != "llada":
        raise UserError(
            f"{path}: model_type is {values.get('model_type')!r}, but only LLaDA checkpoints ('llada') are supported"
        )
    return ModelConfig.from_hf(values, str(path))


class CheckpointFiles(Mapping[str, np.ndarray]):
    """A checkpoint's weights as a mapping from tensor name to array; each access reads that tensor from the disk.

    Arrays come in the stored dtype and layout (out, in).

    Attributes:
      folder: the checkpoint's folder.
      shards: its weight files.
      index: the file that says which tensor is in which of them, where there are several.
      homes: the file of every tensor.
    """

    def __init__(self, folder: pathlib.Path, files: Sequence[shards.Shard], index: pathlib.Path | None = None):
        self.folder, self.shards, self.index = folder, tuple(files), index
        self.homes = {name: shard for shard in self.shards for name in shard.entries}

    @classmethod
    def open(cls, directory: Path) -> "CheckpointFiles":
        """Finds the weight files of a folder and reads their headers.

        Raises:
          UserError: no weights are there, a file is missing or damaged, a tensor is in two files, a dtype is none of
            float32 and bfloat16, or the index disagrees with the files.
        """
        folder = pathlib.Path(directory)
        for single, index in ((SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)):
            if (folder / single).exists():
                return cls(folder, [shards.open_shard(folder / single)])
            if (folder / index).exists():
                return cls._indexed(folder, folder / index)
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}; pass the folder of a downloaded checkpoint")

    @classmethod
    def _indexed(cls, folder: pathlib.Path, index: pathlib.Path) -> "CheckpointFiles":
        values = read_json(index)
        weight_map = values.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} has no weight_map; download the file again")
        for name in sorted(set(weight_map.values())):
            if pathlib.PurePath(name).name != name:
                raise UserError(f"{index} names the file {name!r}, expected a file beside it; download it again")
        files = cls(folder, [shards.open_shard(folder / file) for file in sorted(set(weight_map.values()))], index)
        files._check_index(weight_map, values.get("metadata", {}).get("total_size"))
        return files

    def _check_index(self, weight_map: Mapping[str, str], total: int | None) -> None:
        homes: dict[str, str] = {}
        for shard in self.shards:
            for name in shard.entries:
                if name in homes:
                    raise UserError(f"tensor {name} is duplicated: both {homes[name]} and {shard.path} hold it")
                homes[name] = str(shard.path)
        for name, file in weight_map.items():
            if homes.get(name) != str(self.folder / file):
                raise UserError(
                    f"{self.folder / file} lacks {name}, which {self.index} puts there; download the shard again"
                )
        for name in homes.keys() - weight_map.keys():
            raise UserError(f"{homes[name]} holds {name}, which {self.index} does not list; download the index again")
        if total is not None and total != self.nbytes:
            raise UserError(
                f"{self.index} says total_size {total}, but the tensors have {self.nbytes} bytes; download it again"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self.homes[name].read(name)

    def read(self, name: str, rows: slice = layout.ALL) -> np.ndarray:
        """One tensor, or some of its rows."""
        return self.homes[name].read(name, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor; reads nothing."""
        return {name: shard.entries[name].shape for name, shard in self.homes.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for shard in self.shards for entry in shard.entries.values())

    @property
    def paths(self) -> list[pathlib.Path]:
        """The weight files and their index."""
        return [shard.path for shard in self.shards] + ([self.index] if self.index else [])

    def check(self, config: ModelConfig) -> None:
        """Raises UserError where the tensors are not those of ``config``."""
        layout.check_names(self.shapes, config, str(self.folder))

    def dtype(self) -> np.dtype:
        """The one dtype that all tensors have.

        Raises:
          UserError: they have several.
        """
        seen: dict[str, str] = {}
        for name, shard in self.homes.items():
            seen.setdefault(shard.entries[name].dtype, name)
        if len(seen) > 1:
            (first, one), (second, other) = list(seen.items())[:2]
            raise UserError(
                f"{self.folder}: {one} is {first} but {other} is {second}; pass --dtype to convert all to one dtype"
            )
        return jnp.dtype(next(iter(seen)))
