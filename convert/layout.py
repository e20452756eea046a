"""Which tensor of a checkpoint is which slice of which parameter, from the parameter table."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from igpo_jax.errors import UserError, nearest
from igpo_jax.models.config import ModelConfig
from igpo_jax.models.params import ParamSpec, map_table, param_table

#: Every row of a tensor.
ALL = slice(None)

#: Rows turned at once: few enough that the rows read and the columns written stay in the cache.
_STRIP = 16

#: Bytes of a tensor that are handled at once.
_SLAB_BYTES = 2**26

#: Modules of a block in the order in which the original code makes them, which decides what shares a file.
_MODULES = ("attn_out", "ff_out", "attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "ff_proj", "up_proj")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one tensor of a checkpoint belongs in the parameter tree."""

    path: str  #: of the parameter, as in "blocks/q_proj/weight"
    layer: int | None  #: index on the layer axis, None for a parameter outside the blocks
    shape: tuple[int, ...]  #: of the tensor in the checkpoint
    transpose: bool  #: whether the checkpoint stores (out, in)

    def index(self, rows: slice = ALL) -> tuple[int | slice, ...]:
        """Where some of the tensor's rows are in the parameter."""
        others = (ALL,) * (len(self.shape) - 1)
        inner = (*others, rows) if self.transpose else (rows, *others)
        return inner if self.layer is None else (self.layer, *inner)


def flat_table(config: ModelConfig) -> dict[str, ParamSpec]:
    """The parameter table by path."""
    flat: dict[str, ParamSpec] = {}
    map_table(lambda path, spec: flat.setdefault("/".join(path), spec), param_table(config))
    return flat


def places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor of a checkpoint by name, in the order of the original code's modules."""
    found = dict(_places(flat_table(config)))
    return dict(sorted(found.items(), key=lambda item: _rank(item[1])))


def _places(table: Mapping[str, ParamSpec]) -> Iterator[tuple[str, Place]]:
    for path, spec in table.items():
        shape = spec.shape[1:] if spec.stacked else spec.shape
        for layer in range(spec.shape[0]) if spec.stacked else (None,):
            stored = shape[::-1] if spec.transpose else shape
            yield spec.hf_name.format(layer=layer), Place(path, layer, stored, spec.transpose)


def _rank(place: Place) -> tuple[int, int, int, str]:
    """Sorts tensors as PyTorch lists the modules of the original code."""
    first, *inner = place.path.split("/")
    module = _MODULES.index(inner[0]) if place.layer is not None else 0
    return ("wte", "ln_f", "blocks", "ff_out").index(first), place.layer or 0, module, place.path


def check_names(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, source: str) -> None:
    """Raises UserError where the tensors of a checkpoint are not those of its config.json.

    Args:
      shapes: name -> shape, as the checkpoint has them.
      config: the configuration.
      source: the checkpoint's name, for messages.
    """
    expected = places(config)
    for name in sorted(shapes.keys() - expected):
        raise UserError(f"{source}: tensor {name} is not part of the model in config.json{nearest(name, expected)}")
    for name, place in expected.items():
        if name not in shapes:
            raise UserError(
                f"{source}: tensor {name} is missing; the checkpoint is incomplete or config.json is another's"
            )
        if tuple(shapes[name]) != place.shape:
            raise UserError(f"{source}: tensor {name} has shape {shapes[name]}, but config.json says {place.shape}")


def turned(values: np.ndarray, transpose: bool = True) -> np.ndarray:
    """The contiguous transpose of a matrix, several times as fast as numpy's own; or ``values`` themselves.

    Args:
      values: (out, in), or anything where nothing is to be transposed.
      transpose: whether to.
    """
    if not transpose:
        return values
    out = np.empty(values.shape[::-1], values.dtype)
    for row in range(0, values.shape[0], _STRIP):
        out[:, row : row + _STRIP] = values[row : row + _STRIP].T
    return out


def slabs(shape: tuple[int, ...], unit: int, itemsize: int) -> list[slice]:
    """Cuts a tensor along its rows, so that no piece of a huge one is huge.

    Args:
      shape: of the tensor.
      unit: pieces have a multiple of so many rows.
      itemsize: bytes of a value.
    """
    step = unit * max(1, _SLAB_BYTES // (unit * math.prod(shape[1:]) * itemsize))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def bits(values: np.ndarray) -> np.ndarray:
    """The bytes of an array, (n,) uint8: what checksums and comparisons that must not trip over NaN look at."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
