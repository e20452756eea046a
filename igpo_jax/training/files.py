"""Files that are whole or absent, and what a full disk may cost."""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

from igpo_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes ``path`` in one atomic move, on the disk before it has its name; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Growing:
    """A file that grows by whole records: what a full disk refuses waits in memory for room, and no record is cut.

    Args:
      path: opened to append to; made if absent.

    Raises:
      OSError: the file cannot be opened, or a write fails for another reason than want of room.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.waiting = path, b""
        self._file = path.open("ab", buffering=0)
        self._warned = False

    def append(self, records: bytes) -> None:
        """Adds records; they are in the file at once, or wait for room."""
        self.waiting += records
        self.drain()

    def drain(self) -> bool:
        """Writes what waits; whether nothing waits any more."""
        before, done = os.fstat(self._file.fileno()).st_size, 0
        try:
            while done < len(self.waiting):
                done += os.write(self._file.fileno(), self.waiting[done:])
            self.waiting, self._warned = b"", False
        except OSError as error:
            os.ftruncate(self._file.fileno(), before)
            if not is_full(error):
                raise
            if not self._warned:
                _log.warning("%s cannot grow (%s); what is to be added waits for room", self.path, error.strerror)
            self._warned = True
        return not self.waiting

    def sync(self) -> bool:
        """Waits until every record is on the disk; False where some still wait for room."""
        self.drain()
        os.fsync(self._file.fileno())
        return not self.waiting

    def close(self) -> bytes:
        """Closes the file; what found no room."""
        if not self._file.closed:
            self.drain()
            self._file.close()
        return self.waiting


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the limit on a file's size is used up."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Libraries that write from C++ pass on the system's words only.
    return any(os.strerror(number).lower() in str(error).lower() for number in _FULL)


@contextlib.contextmanager
def spared_when_full(what: str) -> Iterator[None]:
    """Lets a run go on without ``what``, which it can do without, where the disk is full; says so."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        _log.warning("%s could not be written (%s); the run goes on without", what, error.strerror)


@contextlib.contextmanager
def named_when_full(folder: pathlib.Path) -> Iterator[None]:
    """Turns the error of a full disk, where a run cannot do without what it wanted to write, into a UserError."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of {folder} is full ({error.strerror}; {in_words(shutil.disk_usage(folder).free)} are free); "
            "make room and start the same command again: what a run has saved there is intact"
        ) from error


def in_words(size: float) -> str:
    """A number of bytes as people write it: "3.2 GiB", "512 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
