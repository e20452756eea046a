"""The folder of a rewriting run: every reply as it came, every decision, and what makes them comparable.

``run.json`` says what was asked, ``replies.jsonl`` has a line for each request, ``rows.jsonl`` one for each decision,
of which the last of a row counts. Lines are only ever added, so a killed run has lost nothing but what was under way.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.rewriting.acceptance import Decision
from igpo_jax.rewriting.client import Reply


class Store:
    """Reads and extends the folder of one run.

    Args:
        folder: made where it does not exist.
        identity: what the replies depend on: settings, prompt and data.

    Raises:
        UserError: the folder cannot be written, holds another run or is in use, or a line inside a file is damaged.
    """

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
        self.folder = folder
        self._opened = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            _same_run(folder / "run.json", identity)
            self.replies: dict[str, list[Reply]] = {}
            for line in _lines(folder / "replies.jsonl"):
                fields = dict(line)
                self.replies.setdefault(fields.pop("id"), []).append(Reply(**fields))
            self.decisions = {
                line["id"]: Decision(line["reason"], line["reasoning"], line["detail"])
                for line in _lines(folder / "rows.jsonl")
            }
            self._replies = self._opened.enter_context((folder / "replies.jsonl").open("a", encoding="utf-8"))
            self._rows = self._opened.enter_context((folder / "rows.jsonl").open("a", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--output={folder} cannot be written ({error.strerror}); choose another folder") from error

    def _lock(self) -> None:
        handle = self._opened.enter_context((self.folder / ".lock").open("w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output={self.folder} is in use by another rewrite; wait for its end") from None

    def add_reply(self, row: str, reply: Reply) -> None:
        """Stores what came back for a row, before anything is decided about it."""
        self.replies.setdefault(row, []).append(reply)
        _append(self._replies, {"id": row, **dataclasses.asdict(reply)})
        os.fsync(self._replies.fileno())  # it was paid for; a decision can be made again

    def add_decision(self, row: str, decision: Decision) -> None:
        """Stores what became of a row."""
        self.decisions[row] = decision
        _append(self._rows, {"id": row, **dataclasses.asdict(decision)})

    def useful(self, row: str) -> list[Reply]:
        """The replies of a row that a decision can be made on."""
        return [reply for reply in self.replies.get(row, ()) if reply.kind in ("reply", "refused")]

    def all_replies(self) -> Iterator[Reply]:
        """Every request ever made in this folder."""
        for replies in self.replies.values():
            yield from replies

    def close(self) -> None:
        """Closes the files and gives the folder free."""
        self._opened.close()


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _append(handle: Any, line: dict[str, Any]) -> None:
    handle.write(json.dumps(line) + "\n")
    handle.flush()


def _same_run(path: pathlib.Path, identity: dict[str, Any]) -> None:
    """Stores what the replies depend on, or raises UserError with every difference to what is stored."""
    if not path.exists():
        write_whole(path, json.dumps(identity, indent=2) + "\n")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it, or use another --output") from error
    changed = [
        f"{name} {stored.get(name)!r}, now {identity.get(name)!r}"
        for name in sorted(set(stored) | set(identity))
        if stored.get(name) != identity.get(name)
    ]
    if changed:
        raise UserError(
            f"{path.parent} holds a rewrite with {'; '.join(changed)}; use another --output or the stored values"
        )


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; the end of one that a kill cut off is removed from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    found = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number} is damaged ({error}); remove that line and run again") from error
    return found
