"""One weight file: what it holds, and its tensors one at a time. safetensors, or a PyTorch pickle as an extra."""

import dataclasses
import hashlib
import importlib
import math
import pathlib
import pickle
from typing import Any, Protocol

import jax.numpy as jnp  # also teaches numpy the name bfloat16, which the safetensors reader asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.layout import ALL
from igpo_jax.errors import UserError

_DTYPES = {"F32": "float32", "BF16": "bfloat16"}
_BLOCK = 2**24


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor as the file's header describes it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.itemsize


class Shard(Protocol):
    """A weight file."""

    path: pathlib.Path
    entries: dict[str, Entry]  #: by name, in the order of the file

    def read(self, name: str, rows: slice = ALL) -> np.ndarray:
        """One tensor, or some of its rows, in the stored dtype and layout."""

    def start_digest(self) -> tuple[Any, bool]:
        """A sha256 of the file, and whether the bytes of the tensors, in order, are all that is still to be added."""


def open_shard(path: pathlib.Path) -> Shard:
    """Reads the header of a weight file.

    Raises:
      UserError: it is missing or damaged, or holds a tensor that is neither float32 nor bfloat16.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist, but the index names it; download the shard")
    return SafetensorsShard(path) if path.suffix == ".safetensors" else TorchShard(path)


class SafetensorsShard:
    """A safetensors file. It is mapped anew for every tensor, so that what was read does not stay in memory."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.offset_keys():
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    self.entries[name] = _entry(path, name, part.get_shape(), _DTYPES.get(dtype, dtype))
        except SafetensorError as error:
            raise _damaged(path, error) from error

    def read(self, name: str, rows: slice = ALL) -> np.ndarray:
        """One tensor, or some of its rows, in the stored dtype and layout."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                return file.get_tensor(name) if rows == ALL else file.get_slice(name)[rows]
        except SafetensorError as error:
            raise _damaged(self.path, error) from error

    def start_digest(self) -> tuple[Any, bool]:
        """The sha256 of the header; the format allows no bytes between or after the tensors."""
        with self.path.open("rb") as file:
            size = file.read(8)
            return hashlib.sha256(size + file.read(int.from_bytes(size, "little"))), True


class TorchShard:
    """A PyTorch pickle, read with ``weights_only``, which refuses everything but tensors: no code of it is run."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.entries: dict[str, Entry] = {}
        for name, tensor in self._tensors().items():
            self.entries[name] = _entry(path, name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def read(self, name: str, rows: slice = ALL) -> np.ndarray:
        """One tensor, or some of its rows, in the stored dtype and layout."""
        tensor = self._tensors()[name][rows].contiguous()
        if self.entries[name].dtype == "float32":
            return tensor.numpy().copy()
        # numpy knows no bfloat16 of torch's, so the bits travel as whole numbers.
        return tensor.view(_torch(self.path).int16).numpy().copy().view(jnp.bfloat16)

    def start_digest(self) -> tuple[Any, bool]:
        """The sha256 of the file, complete."""
        return file_digest(self.path), False

    def _tensors(self) -> dict[str, Any]:
        """The tensors by name, mapped but not read."""
        torch = _torch(self.path)
        try:
            tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.path} is damaged or holds more than tensors, perhaps code, so it is not opened; download it "
                "again, or take the checkpoint's safetensors files"
            ) from error
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            lines = str(error).splitlines() or [""]
            raise UserError(
                f"{self.path} is not a whole file of PyTorch weights ({lines[0][:200]}); download it again, or take "
                "the checkpoint's safetensors files"
            ) from error
        if not isinstance(tensors, dict) or not all(hasattr(tensor, "dtype") for tensor in tensors.values()):
            raise UserError(f"{self.path} holds no mapping from names to tensors; take the checkpoint's weight files")
        return tensors


def file_digest(path: pathlib.Path) -> Any:
    """The sha256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest


def _torch(path: pathlib.Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch pickle, and PyTorch is not installed; install the extra (pip install "
            "'igpo-jax[torch]'), or download the checkpoint's safetensors files"
        ) from error


def _entry(path: pathlib.Path, name: str, shape: list[int], dtype: str) -> Entry:
    if dtype not in _DTYPES.values():
        raise UserError(f"{path}: tensor {name} has dtype {dtype}, expected float32 or bfloat16; convert it first")
    return Entry(tuple(shape), dtype)


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole safetensors file ({error}); download it again")
