"""Orbax checkpoints written and read piece by piece, so that no whole array, let alone a whole tree, is in memory.

Orbax writes a tree by handing each leaf to the handler of its type. The handlers here belong to two types of our own: a
``Slot`` has a shape and a dtype but no values, which arrive afterwards, in any order and one slice at a time; and a
``Stored`` array is opened but not read. What lands on disk is Orbax's own format with Orbax's own metadata, and any
program restores it with Orbax as usual.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

Path = str | os.PathLike[str]

#: Longest side of a chunk. Chunks are the unit of reading, small enough that a shard takes little more than itself.
_CHUNK = 512

#: Orbax collects chunks into files of about this size, and holds a file in memory until it is full.
_FILE_BYTES = 2**26

#: Pieces under way to the disk, while the next one is being prepared.
_UNDER_WAY_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array to be written: shape and dtype without the values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool = False  #: whether dimension 0 is the layer axis

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Piece:
    """Values for a part of a slot; parts begin and end where chunks do, and do not overlap."""

    path: str  #: of the slot, as in "blocks/q_proj/weight"
    where: tuple[int | slice, ...]  #: index of the part
    values: np.ndarray


def chunk(size: int) -> int:
    """Length of a chunk along a dimension of ``size``, but for the layer axis, where it is 1."""
    return -(-size // -(-size // _CHUNK))


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
      pieces: values that fill every slot; each is asked for when those before it are mostly written.

    Raises:
      ValueError: a piece belongs to no slot, comes twice or has another shape, or a slot is not filled.
    """
    arguments = ocp.args.PyTreeSave(slots, ocdbt_target_data_file_size=_FILE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((Slot, _SlotHandler(pieces)))
    with _quiet():
        # Trained weights hardly compress, and without compression the size on disk is known beforehand.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(_absolute(path), args=arguments)


def open_arrays(path: Path) -> Any:
    """Opens the arrays of an Orbax checkpoint, whoever wrote it: its tree with a ``Stored`` in every leaf."""
    registry = ocp.type_handlers.create_type_handler_registry((Stored, _StoredHandler()))
    with _quiet():
        tree = ocp.PyTreeCheckpointHandler().metadata(_absolute(path)).tree
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=Stored), tree)
        return handler.restore(_absolute(path), args=ocp.args.PyTreeRestore(restore_args=wanted))


class _Handler(ocp.type_handlers.TypeHandler):
    """What both handlers share: their arrays look like numpy's to who reads the checkpoint later."""

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        return await ocp.type_handlers.NumpyHandler().metadata(infos)

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise TypeError("only a Slot is written")

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise TypeError("only a Stored array is opened")


class _SlotHandler(_Handler):
    """Writes slots from pieces."""

    def __init__(self, pieces: Iterable[Piece]):
        self._pieces = pieces

    async def serialize(self, values: Sequence[Slot], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        opened = {}
        for slot, info in zip(values, infos, strict=True):
            path = jax.tree_util.keystr(info.keypath, simple=True, separator="/")
            opened[path] = _OpenSlot(slot, await _create(slot, info))
        await self._write(opened)
        for path, open_slot in opened.items():
            if open_slot.missing:
                raise ValueError(f"{path} lacks {open_slot.missing} values")
        return []

    async def _write(self, opened: Mapping[str, "_OpenSlot"]) -> None:
        under_way: collections.deque[tuple[int, Any]] = collections.deque()
        try:
            for piece in self._pieces:
                if piece.path not in opened:
                    raise ValueError(f"there is no slot {piece.path}")
                under_way.append((piece.values.nbytes, opened[piece.path].write(piece)))
                while sum(size for size, _ in under_way) > _UNDER_WAY_BYTES:
                    await under_way.popleft()[1]
            await asyncio.gather(*(writing for _, writing in under_way))
        finally:
            # After an error too: whoever clears the folder away must not be overtaken by a late write.
            await asyncio.gather(*(writing for _, writing in under_way), return_exceptions=True)


class _OpenSlot:
    """A slot with the array on disk that takes its values."""

    def __init__(self, slot: Slot, store: Any):
        self._slot, self._store = slot, store
        self._seen: set[str] = set()
        self.missing = math.prod(slot.shape)

    def write(self, piece: Piece) -> Any:
        """Starts writing one piece."""
        target = self._store[piece.where]
        if tuple(target.shape) != piece.values.shape or piece.values.dtype != self._slot.dtype:
            found = f"{piece.values.dtype}{piece.values.shape}"
            raise ValueError(f"{piece.path} takes {self._slot.dtype}{tuple(target.shape)} there, not {found}")
        if str(piece.where) in self._seen:
            raise ValueError(f"{piece.path} got its part {piece.where} twice")
        self._seen.add(str(piece.where))
        self.missing -= piece.values.size
        return asyncio.ensure_future(_finished(target.write(piece.values, can_reference_source_data_indefinitely=True)))


class _StoredHandler(_Handler):
    """Opens arrays without reading them."""

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Stored]:
        specs = [ocp.type_handlers.get_json_tspec_read(info, bool(info.is_ocdbt_checkpoint)) for info in infos]
        opening = [
            _finished(tensorstore.open(tensorstore.Spec(spec), open=True, context=info.ts_context))
            for spec, info in zip(specs, infos, strict=True)
        ]
        # All of them end before an error is raised, so that none comes to its end after the event loop.
        opened = await asyncio.gather(*opening, return_exceptions=True)
        for store in opened:
            if isinstance(store, BaseException):
                raise store
        return [Stored(store) for store in opened]


async def _create(slot: Slot, info: Any) -> Any:
    """A new array on disk where Orbax wants it, in chunks that never span layers."""
    spec = ocp.type_handlers.get_json_tspec_write(info, True, slot.shape, slot.shape, slot.dtype, process_index=0)
    spec["metadata"]["chunks"] = [
        1 if slot.stacked and axis == 0 else chunk(size) for axis, size in enumerate(slot.shape)
    ]
    return await tensorstore.open(tensorstore.Spec(spec), create=True, context=info.ts_context)


async def _finished(future: Any) -> Any:
    """A tensorstore future as a coroutine, which asyncio can gather."""
    return await future


def _absolute(path: Path) -> epath.Path:
    return epath.Path(os.path.abspath(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's notice that it finds no handler for jax arrays, of which there are none."""
    orbax = logging.getLogger("absl")
    level = orbax.level
    orbax.setLevel(logging.ERROR)
    try:
        yield
    finally:
        orbax.setLevel(level)
