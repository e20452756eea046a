"""Files that are whole or absent, and what a full disk may cost."""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Iterator

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


def in_words(size: float) -> str:
    """A number of bytes as people write it: "3.2 GiB", "512 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
