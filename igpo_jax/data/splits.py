"""Opens one split of a data set as a sequence of examples, building it on first use."""

import bisect
import contextlib
import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, overload

from igpo_jax.data.examples import Example
from igpo_jax.data.settings import SPLITS, DataSettings
from igpo_jax.errors import UserError


class Split(Sequence[Example]):
    """The rows of one split, read from disk when asked for; ``report`` says what building the data set dropped."""

    def __init__(self, parts: Sequence[Sequence[dict[str, bytes]]], report: dict[str, Any]):
        self._parts = parts
        self._starts = [sum(len(part) for part in parts[:index]) for index in range(len(parts))]
        self.report = report

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of a split with {len(self)} rows")
        part = bisect.bisect_right(self._starts, row) - 1
        return _example(self._parts[part][row - self._starts[part]])


def _example(record: dict[str, bytes]) -> Example:
    # TFDS stores text as bytes.
    return Example(**{field.name: record[field.name].decode() for field in dataclasses.fields(Example)})


def open_split(settings: DataSettings, split: str, cache_dir: str | os.PathLike[str]) -> Split:
    """Opens ``split`` (``sft``, ``rl``, ``test``, or ``train`` = sft and rl together), building the data set once.

    The built data lies under ``cache_dir`` in a folder whose name depends on the settings and on the content of the
    source files, so that a changed file or dial is built anew and an unchanged one is only read.

    Args:
        settings: which data set for which split, and its dials.
        split: the split to open.
        cache_dir: folder for built data sets and downloads where ``settings.cache`` names none; made where needed.

    Raises:
        UserError: a source file is missing or has a bad row, or the split does not exist or is empty.
    """
    cache = pathlib.Path(settings.cache or cache_dir)
    parts, reports = [], []
    for source, names in _sources(settings, split):
        builder, checksums = _built(source, cache)
        rows = {name: info.num_examples for name, info in builder.info.splits.items()}
        parts += [builder.as_data_source(name) for name in names if rows.get(name)]
        reports.append({"data_set": source.name, "sha256": checksums, "rows": rows, **builder.info.metadata["report"]})
    if not parts:
        rows = reports[0]["rows"]
        found = ", ".join(f"{name} ({count} rows)" for name, count in sorted(rows.items()))
        raise UserError(
            f"the data set '{reports[0]['data_set']}' has no rows in split '{split}'; it has {found or 'none at all'}"
        )
    return Split(parts, reports[0] if len(reports) == 1 else {"parts": reports})


def _sources(settings: DataSettings, split: str) -> list[tuple[DataSettings, tuple[str, ...]]]:
    """The data sets that hold a split, each with the names of its splits; "train" may be made of two."""
    wanted = ("sft", "rl") if split == "train" else (split,)
    if wanted[0] not in SPLITS:
        raise UserError(f"there is no split '{split}'; choose one of {', '.join((*SPLITS, 'train'))}")
    if settings.place(wanted[0]) == settings.place(wanted[-1]):
        return [(settings.source(wanted[0]), wanted)]
    return [(settings.source(name), (name,)) for name in wanted]


def _built(settings: DataSettings, cache: pathlib.Path) -> tuple[Any, dict[str, str]]:
    with _quiet():
        from igpo_jax.data.builders import make_builder

        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the data cache {cache} cannot be written ({error.strerror}); choose another folder"
            ) from None
        # A builder looks for finished data once, when it is made: before the lock it would miss another run's.
        with _lock(cache / f".{settings.name}.lock"):
            builder, checksums = make_builder(settings, cache)
            builder.download_and_prepare()
    return builder, checksums


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    # Two runs started at once would otherwise build into the same folder.
    import fcntl

    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the progress bars, prints and warnings with which TFDS fills the screen; errors still pass."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
