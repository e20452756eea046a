"""The output folder: its protocol, and samples appended batch by batch, so that a killed evaluation can go on."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from igpo_jax import settings
from igpo_jax.errors import UserError

PROTOCOL, SAMPLES, REPORT, PAGE = "protocol.json", "samples.jsonl", "report.json", "samples.html"

#: What an evaluation that goes on may say otherwise than the one that began it.
_MAY_CHANGE = frozenset({"checkpoint.path"})


class Store:
    """One output folder, written by one process.

    Args:
      folder: where everything goes; made on first use.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.samples = folder / SAMPLES

    def check_place(self) -> None:
        """Raises UserError where the folder cannot be written; leaves nothing behind."""
        existing = self.folder
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"--output {self.folder}: {existing} is a file; name a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"--output {self.folder} cannot be written; choose a folder that you may write to")
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / PROTOCOL).exists():
            found = ", ".join(sorted(path.name for path in self.folder.iterdir())[:3])
            raise UserError(f"--output {self.folder} holds other files ({found}); name a new folder")

    def begin(self, protocol: dict[str, Any]) -> None:
        """Makes the folder, or checks that it holds an evaluation under the same protocol.

        Raises:
          UserError: it holds one under another protocol; the first difference is named.
        """
        path = self.folder / PROTOCOL
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(protocol, indent=2) + "\n")
            return
        for field, before, now in settings.changed_fields(read_json(path), protocol):
            # What was changed stands in the suites as well, with the values that it led to.
            if field not in _MAY_CHANGE and field.split(".")[0] != "changed":
                raise UserError(
                    f"--output {self.folder} holds an evaluation with {field} {before!r}, but this one has {now!r}; "
                    "name another --output, or ask as before"
                )

    def finished(self, batches: Sequence[Sequence[tuple[str, str, int]]]) -> int:
        """How many batches are stored whole, from the first; what stands behind them is cut off.

        Args:
          batches: for every batch the (suite, question id, sample) of its rows, in order.

        Raises:
          UserError: a line that is not the last cannot be read, or is of another evaluation.
        """
        if not self.samples.exists():
            return 0
        keys, ends = self._stored()
        place = done = 0
        for batch in batches:
            found = keys[place : place + len(batch)]
            if found != list(batch)[: len(found)]:
                line = place + 1 + [a == b for a, b in zip(found, batch, strict=False)].index(False)
                raise UserError(
                    f"{self.samples}, line {line} is not the sample that belongs there; name another --output"
                )
            if len(found) < len(batch):
                break
            place, done = place + len(batch), done + 1
        with self.samples.open("rb+") as file:
            file.truncate(ends[place])
        return done

    def _stored(self) -> tuple[list[tuple[str, str, int]], list[int]]:
        """The (suite, id, sample) of every whole line, and the byte where each line begins, one more for the end."""
        keys, ends = [], [0]
        lines = self.samples.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                keys.append((row["suite"], row["id"], row["sample"]))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1:
                    break
                raise UserError(
                    f"{self.samples}, line {number} is damaged ({error}); name another --output, or cut the file there"
                ) from error
            ends.append(ends[-1] + len(line) + 1)
        return keys, ends

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Adds the samples of one batch; they are on the disk when this returns."""
        with self.samples.open("ab") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All stored samples."""
        return read_samples(self.samples)


def read_samples(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a samples.jsonl.

    Raises:
      UserError: there is no such file, or a line is no sample.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it is written by igpo_jax.evaluate") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(row | {"suite": str(row["suite"]), "id": str(row["id"]), "sample": int(row["sample"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no sample of an evaluation ({error})") from error
    return rows


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it is written by igpo_jax.evaluate") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it was cut short or edited") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected the object that igpo_jax.evaluate writes")
    return value


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
