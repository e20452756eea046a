"""Orbax checkpoints written and read piece by piece, so that no whole array, let alone a whole tree, is in memory.

Orbax writes a tree by handing each leaf to the handler of its type. The handler here belongs to two types of its own: a
``Slot`` has a shape and a dtype but no values, which arrive afterwards, in any order and one slice at a time; and a
``Stored`` array is opened but not read. What lands on disk is Orbax's own format, with Orbax's own metadata, and any
Orbax program restores it as usual.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

Path = str | os.PathLike[str]

#: Chunks are the unit of reading: small enough that a device's shard takes little more than itself from the disk.
_CHUNK_BYTES = 2**20

#: Orbax collects chunks into files of about this size, and holds a file in memory until it is full.
_FILE_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array to be written: shape and dtype without the values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool = False  #: whether dimension 0 is the layer axis, and a piece is one layer

    @property
    def piece(self) -> tuple[int, ...]:
        """Shape of what is written at once, with a layer axis of one."""
        return (1, *self.shape[1:]) if self.stacked else self.shape


@dataclasses.dataclass(frozen=True)
class Piece:
    """Values for a slot: one layer of a stacked array, or a whole array."""

    path: str  #: of the slot, as in "blocks/q_proj/weight"
    layer: int | None
    values: np.ndarray


class Stored:
    """An array on disk; indexing reads just the part asked for."""

    def __init__(self, store: Any):
        self._store = store

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(self._store.shape)

    @property
    def dtype(self) -> np.dtype:
        """Data type on disk."""
        return self._store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._store[index].read().result()


def write(path: Path, slots: Any, pieces: Iterable[Piece]) -> None:
    """Writes a tree of ``Slot`` as an Orbax checkpoint from pieces that arrive in any order.

    Args:
      path: folder to make; the checkpoint appears there once it is complete.
      slots: the tree.
      pieces: values for every slot, each asked for when the one before it has been handed on.

    Raises:
      ValueError: a piece belongs to no slot, comes twice, has another shape, or one is missing.
    """
    arguments = ocp.args.PyTreeSave(
        slots,
        save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), slots),
        ocdbt_target_data_file_size=_FILE_BYTES,
    )
    registry = ocp.type_handlers.create_type_handler_registry((Slot, _Handler(pieces)))
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(_absolute(path), args=arguments)


def open_arrays(path: Path, paths: Iterable[str] | None = None) -> Any:
    """Opens the arrays of an Orbax checkpoint without reading them: its tree with a ``Stored`` in every leaf.

    Args:
      path: folder of the checkpoint, by whatever program.
      paths: top-level names to open, by default all.
    """
    registry = ocp.type_handlers.create_type_handler_registry((Stored, _Handler(())))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    tree = ocp.PyTreeCheckpointHandler().metadata(_absolute(path)).tree
    if paths is not None:
        tree = {name: tree[name] for name in paths}
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=Stored), tree)
    return handler.restore(
        _absolute(path), args=ocp.args.PyTreeRestore(tree, restore_args=wanted, partial_restore=paths is not None)
    )


class _Handler(ocp.type_handlers.TypeHandler):
    """Writes ``Slot`` leaves from pieces and opens leaves as ``Stored``; stored leaves look like numpy arrays."""

    def __init__(self, pieces: Iterable[Piece]):
        self._pieces = pieces

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        return await ocp.type_handlers.NumpyHandler().metadata(infos)

    async def serialize(self, values: Sequence[Slot], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        stores, missing = {}, {}
        for slot, info, arg in zip(values, infos, args, strict=True):
            spec = ocp.type_handlers.get_json_tspec_write(
                info, True, slot.shape, slot.piece, slot.dtype, process_index=0, arg=arg
            )
            store = await tensorstore.open(tensorstore.Spec(spec), create=True, context=info.ts_context)
            path = jax.tree_util.keystr(info.keypath, simple=True, separator="/")
            stores[path] = (slot, store)
            missing[path] = set(range(slot.shape[0])) if slot.stacked else {None}
        for piece in self._pieces:
            if piece.path not in stores or piece.layer not in missing[piece.path]:
                raise ValueError(f"{piece.path} takes no (second) piece {piece.layer}")
            slot, store = stores[piece.path]
            values_ = piece.values[None] if slot.stacked else piece.values
            if values_.shape != slot.piece or values_.dtype != slot.dtype:
                raise ValueError(f"{piece.path} takes {slot.piece}, not {values_.shape}")
            missing[piece.path].remove(piece.layer)
            await (store[piece.layer : piece.layer + 1] if slot.stacked else store).write(values_)
        if any(missing.values()):
            raise ValueError(f"no values for {[path for path, layers in missing.items() if layers]}")
        return []

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Stored]:
        specs = [ocp.type_handlers.get_json_tspec_read(info, bool(info.is_ocdbt_checkpoint)) for info in infos]
        stores = [
            await tensorstore.open(tensorstore.Spec(spec), open=True, context=info.ts_context)
            for spec, info in zip(specs, infos, strict=True)
        ]
        return [Stored(store) for store in stores]


def _absolute(path: Path) -> epath.Path:
    return epath.Path(os.path.abspath(path))


def nbytes(slot: Slot) -> int:
    """Bytes of a slot's values."""
    return math.prod(slot.shape) * slot.dtype.itemsize
