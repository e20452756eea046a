"""Arrays from and to .npz files, each checked by name, shape and contents before anything is computed."""

import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from igpo_jax.errors import UserError


class ArrayFile:
    """The arrays of one .npz file; every complaint names the file, the array, what it is and what was expected."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._read: set[str] = set()
        try:
            with open(self.path, "rb") as file:
                # numpy would also read a lone array, which has no name.
                if not zipfile.is_zipfile(file):
                    raise ValueError("no .npz archive")
                file.seek(0)
                found = np.load(file, allow_pickle=False)
                self.arrays: dict[str, np.ndarray] = {name: found[name] for name in found.files}
        except FileNotFoundError as error:
            raise UserError(f"--tokens names {self.path}, which does not exist") from error
        except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is not an .npz file of plain arrays ({_line(error)})") from error

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def get(self, name: str, dims: str, *shapes: tuple[int | None, ...]) -> np.ndarray:
        """An array of one of some shapes.

        Args:
          name: of the array.
          dims: what to call the shape in a message, as in "(B, P)".
          *shapes: those that will do; None stands for any length but 0.
        """
        self._read.add(name)
        if name not in self.arrays:
            found = ", ".join(sorted(self.arrays)) or "nothing"
            raise UserError(f"{self.path} has no array '{name}', expected one of shape {dims}; it holds {found}")
        array = self.arrays[name]
        if not any(_fits(array.shape, shape) for shape in shapes):
            raise self._wrong(name, f"shape {array.shape}", f"{dims}{_sizes(shapes)}")
        return array

    def tokens(self, name: str, dims: str, *shapes: tuple[int | None, ...], size: int, free: int = 0) -> np.ndarray:
        """Token ids below ``size`` as int32; with ``free`` = -1 that number is allowed as well."""
        array = self.get(name, dims, *shapes)
        if not np.issubdtype(array.dtype, np.integer):
            raise self._wrong(name, f"dtype {array.dtype}", "integers")
        outside = array[(array < free) | (array >= size)]
        if outside.size:
            allowed = f"{'-1 or ' if free else ''}0 to {size - 1}"
            raise self._wrong(name, f"token {outside[0]}", f"{allowed}, the rows of the model's embedding")
        return array.astype(np.int32)

    def mask(self, name: str, dims: str, shape: tuple[int, int]) -> np.ndarray:
        """An optional mask (B, T) of 0 and 1, all ones where it is absent, as bool; every row has at least one 1."""
        if name not in self:
            return np.ones(shape, bool)
        array = self.get(name, dims, shape)
        if array.dtype != bool and not (np.issubdtype(array.dtype, np.integer) and np.isin(array, (0, 1)).all()):
            raise self._wrong(name, f"dtype {array.dtype}, {array.min()} to {array.max()}", "integers 0 and 1, or bool")
        valid = array.astype(bool)
        if not valid.any(axis=1).all():
            raise self._wrong(name, f"no 1 in row {int(np.argmin(valid.any(axis=1)))}", "at least one token a row")
        return valid

    def floats(self, name: str, dims: str, *shapes: tuple[int | None, ...]) -> np.ndarray:
        """Floating-point numbers, none of them NaN."""
        array = self.get(name, dims, *shapes)
        if not np.issubdtype(array.dtype, np.floating):
            raise self._wrong(name, f"dtype {array.dtype}", "floating-point numbers")
        if np.isnan(array).any():
            raise self._wrong(name, "NaN", "numbers")
        return array

    def unread(self) -> list[str]:
        """Names of the arrays that nobody asked for."""
        return sorted(self.arrays.keys() - self._read)

    def _wrong(self, name: str, found: str, expected: str) -> UserError:
        return UserError(f"{self.path}: array '{name}' has {found}, expected {expected}")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length > 0 if size is None else length == size for length, size in zip(shape, wanted, strict=True)
    )


def _sizes(shapes: tuple[tuple[int | None, ...], ...]) -> str:
    """The known sizes, where there are any: " = (2, 9)"."""
    shown = [f"({', '.join('any' if n is None else str(n) for n in shape)})" for shape in shapes if any(shape)]
    return f" = {' or '.join(shown)}" if shown else ", none of them 0"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file under exactly this name; it appears whole or not at all."""
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        # mkstemp makes the file private; an output is as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
