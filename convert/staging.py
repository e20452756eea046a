"""A folder that appears whole or not at all: written beside its place under another name, then renamed."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

from igpo_jax.errors import UserError

#: Kept free beyond what is written, for metadata and the file system's own needs.
_SPARE_BYTES = 2**26


@contextlib.contextmanager
def staged(output: str | os.PathLike[str], needed: int) -> Iterator[pathlib.Path]:
    """Makes a folder to fill in, which becomes ``output`` when the block ends well and disappears when it does not.

    What a killed run left behind is removed by the next one.

    Args:
      output: the folder to make; it may exist only if it is empty.
      needed: bytes that will be written.

    Raises:
      UserError: ``output`` holds something, another process is writing it, or the disk has not enough space.
    """
    final = pathlib.Path(os.path.abspath(output))
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"--output {output} exists already; choose another folder, or delete it first")
    partial = final.parent / f".{final.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be made ({error.strerror}); choose a folder that you may write to"
        ) from error
    with lock:
        _take(lock.fileno(), output)
        try:
            _clear(partial)
            _check_space(partial, needed, output)
            yield partial
            (partial / ".lock").unlink()
            # Without this a power cut soon afterwards could leave the new name with files that are still empty.
            _sync(partial)
            os.replace(partial, final)
        except BaseException:
            _remove(partial)
            raise


def _take(lock: int, output: str | os.PathLike[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"--output {output} is being written by another process; wait for it to finish") from error


def _clear(partial: pathlib.Path) -> None:
    for item in partial.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != ".lock":
            item.unlink()


def _sync(folder: pathlib.Path) -> None:
    """Waits until the contents of a folder are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: pathlib.Path) -> None:
    """Deletes a folder into which a write that is still under way may put one more file."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _check_space(folder: pathlib.Path, needed: int, output: str | os.PathLike[str]) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"--output {output} needs {gigabytes(needed + _SPARE_BYTES)} of disk space, but {gigabytes(free)} are "
            "free; free some, or choose a folder on another disk"
        )


def gigabytes(count: int) -> str:
    """A number of bytes in GB, or in MB where it is small."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
