"""A model's parameters read one slice at a time, wherever they are: stored, in a checkpoint, in memory, or merged."""

import pathlib
from typing import Any, Protocol

import jax
import numpy as np

from convert import arrays, layout, streaming
from convert.checkpoint_files import CheckpointFiles
from convert.layout import ALL, Place
from igpo_jax.models import lora
from igpo_jax.models.config import ModelConfig


class Parameters(Protocol):
    """Parameters by path, in the layout of the parameter tree: matrices (in, out)."""

    def read(self, place: Place, rows: slice = ALL) -> np.ndarray:
        """What one tensor of the checkpoint, or some of its rows, is in the parameter."""

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter, stacked; reads nothing."""


class StoredParameters:
    """Parameters in an Orbax checkpoint.

    Args:
      path: folder of the checkpoint.
      prefix: in front of the paths there, as in "trainable/" of a training state.
    """

    def __init__(self, path: pathlib.Path, prefix: str = ""):
        self._path = path
        arrays.stored(path)  # says in one sentence what is wrong with a damaged checkpoint
        found = arrays.flatten(streaming.open_arrays(path))
        self._arrays = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}

    def read(self, place: Place, rows: slice = ALL) -> np.ndarray:
        """What one tensor of the checkpoint, or some of its rows, is in the parameter."""
        try:
            return self._arrays[place.path][place.index(rows)]
        except ValueError as error:  # tensorstore's word for damage
            raise arrays.unreadable(self._path, error) from error

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter, stacked; reads nothing."""
        return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in self._arrays.items()}


class CheckpointParameters:
    """Parameters in the files of a Hugging Face checkpoint."""

    def __init__(self, files: CheckpointFiles, config: ModelConfig):
        files.check(config)
        self._files = files
        self._names = {(place.path, place.layer): name for name, place in layout.places(config).items()}
        self._table = layout.flat_table(config)

    def read(self, place: Place, rows: slice = ALL) -> np.ndarray:
        """What one tensor of the checkpoint, or some of its rows, is in the parameter."""
        return layout.turned(self._files.read(self._names[place.path, place.layer], rows), place.transpose)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter, stacked; reads nothing."""
        dtype = self._files.dtype()
        return {path: jax.ShapeDtypeStruct(spec.shape, dtype) for path, spec in self._table.items()}


class TreeParameters:
    """Parameters in memory."""

    def __init__(self, params: Any):
        self._arrays = arrays.flatten(params)

    def read(self, place: Place, rows: slice = ALL) -> np.ndarray:
        """What one tensor of the checkpoint, or some of its rows, is in the parameter."""
        return np.asarray(self._arrays[place.path])[place.index(rows)]

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter, stacked."""
        return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in self._arrays.items()}


class MergedParameters:
    """Parameters with adapters added into their weights, layer by layer, as ``lora.merge`` adds them."""

    def __init__(self, base: Parameters, adapters: lora.Adapters):
        self._base, self._adapters = base, adapters
        self._merge = jax.jit(lora.merge)

    def read(self, place: Place, rows: slice = ALL) -> np.ndarray:
        """What one tensor of the checkpoint, or some of its rows, is in the parameter."""
        name = place.path.removeprefix("blocks/").removesuffix("/weight")
        if place.path != f"blocks/{name}/weight" or name not in self._adapters.layers or place.layer is None:
            return self._base.read(place, rows)
        weight = self._base.read(place)[None].astype(np.float32)
        layer = slice(place.layer, place.layer + 1)
        pair = {part: matrix[layer] for part, matrix in self._adapters.layers[name].items()}
        one = lora.Adapters(layers={name: pair}, scale=self._adapters.scale)
        merged = self._merge({"blocks": {name: {"weight": weight}}}, one)
        return np.asarray(merged["blocks"][name]["weight"][0])[place.index(rows)[1:]]

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter, stacked; float32, as training keeps them."""
        return {path: jax.ShapeDtypeStruct(kind.shape, np.float32) for path, kind in self._base.shapes().items()}


def check(parameters: Parameters, config: ModelConfig, source: str) -> np.dtype:
    """Holds parameters against a configuration and returns their dtype; a UserError says what does not fit."""
    found = parameters.shapes()
    dtype = next(iter(found.values())).dtype if found else np.dtype(np.float32)
    table = layout.flat_table(config)
    arrays.check(found, {path: jax.ShapeDtypeStruct(spec.shape, dtype) for path, spec in table.items()}, source)
    return np.dtype(dtype)
