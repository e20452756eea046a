"""safetensors files written tensor by tensor, byte for byte as the safetensors library writes them, and their index.

The library itself wants all tensors of a file in memory.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convert import layout

_NAMES = {"float32": "F32", "bfloat16": "BF16"}

#: Reads a tensor by name, in the layout and dtype it is written in, as consecutive blocks of its rows.
Read = Callable[[str], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to be written: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def split(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names in groups of at most ``limit`` bytes, in the order given; a larger tensor is a group of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= tensor.nbytes
    return groups


def write_checkpoint(folder: pathlib.Path, tensors: Mapping[str, Tensor], read: Read, limit: int) -> None:
    """Writes model.safetensors, or shards of at most ``limit`` bytes with their index.

    Args:
      folder: where to.
      tensors: what to write, by name, in the order in which it is spread over the shards.
      read: values of a tensor.
      limit: bytes.
    """
    groups = split(tensors, limit)
    if len(groups) == 1:
        write_file(folder / "model.safetensors", tensors, read)
        return
    files = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    for file, names in zip(files, groups, strict=True):
        write_file(folder / file, {name: tensors[name] for name in names}, read)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, names in zip(files, groups, strict=True) for name in names},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def write_file(path: pathlib.Path, tensors: Mapping[str, Tensor], read: Read) -> None:
    """Writes one safetensors file; tensors of one dtype, sorted by name as the library sorts them."""
    names = sorted(tensors)
    with path.open("wb") as file:
        file.write(_header(names, tensors))
        for name in names:
            written = 0
            for values in read(name):
                if values.shape[1:] != tensors[name].shape[1:] or values.dtype != tensors[name].dtype:
                    raise ValueError(f"{name} is {values.dtype}{values.shape}, not as announced")
                written += file.write(layout.bits(values).data)
            if written != tensors[name].nbytes:
                raise ValueError(f"{name} has {written} bytes, not {tensors[name].nbytes} as announced")


def _header(names: Sequence[str], tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = tensors[name]
        stop = start + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text
