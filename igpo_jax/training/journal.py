"""Verdicts on disk as they are given, until a checkpoint holds what they led to.

A comparison that runs into its limit of CPU time on a busy machine may finish on an idle one. A run that is killed and
repeats a step must not learn from other verdicts than those it has seen, so it reads them back. One file a step,
``journal/NAME_STEP.pPROCESS.jsonl``: a line a verdict, and one for what the step's replacements were.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.rewards.verdict import Judge, Verdict
from igpo_jax.training.files import Growing, spared_when_full

FOLDER = "journal"
_log = logging.getLogger(__name__)


class Journal:
    """Judges through a pool; what it has judged before in the same step it reads back instead.

    Args:
      judge: who judges what is new.
      workdir: the run directory.
      process: number of this process; each writes files of its own and reads those of all.
    """

    def __init__(self, judge: Judge, workdir: pathlib.Path, process: int = 0) -> None:
        self._judge, self._folder, self._process = judge, workdir / FOLDER, process
        self._lock = threading.RLock()
        self._known: dict[str, Verdict] = {}
        self._replaced: dict[str, Any] | None = None
        self._file: Growing | None = None
        self._title = ""
        #: Verdicts of this step that are time-outs, replayed ones included.
        self.timed_out = 0
        #: Verdicts of this step that were read back.
        self.replayed = 0

    def begin(self, name: str, step: int) -> None:
        """Starts the journal of a step, or takes it up where a killed run left it.

        Args:
          name: the stage, or what else judges.
          step: the step that is about to run, from 1.
        """
        with self._lock:
            self.end()
            self._title = f"{name}_{step:06d}"
            for path in sorted(self._folder.glob(f"{self._title}.p*.jsonl")):
                for entry in _entries(path, mine=path.name.endswith(f".p{self._process}.jsonl")):
                    self._take(entry)

    def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (gold, completion) pairs, in order, those of the journal first; new ones are on file after.

        Raises:
          UserError: the pool is closed, or its workers cannot start.
        """
        with self._lock:
            keys = [_key(gold, text) for gold, text in items]
            new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
            self.replayed += sum(key in self._known for key in keys)
            found = dict(zip(new, self._judge.judge(list(new.values())), strict=True)) if new else {}
            if self._title:
                self._write([{"key": key, **_fields(verdict)} for key, verdict in found.items()])
                self._known |= found
            verdicts = [found.get(key) or self._known[key] for key in keys]
            self.timed_out += sum(verdict.timed_out for verdict in verdicts)
            return verdicts

    def settle(self, tokens: np.ndarray, replaced: np.ndarray) -> bool:
        """Records what a step's rollout came to; whether it is what an earlier attempt at the step recorded.

        Args:
          tokens: (B, C) int32, completions after replacement.
          replaced: (B,) bool, rows that were replaced.
        """
        digest = hashlib.sha256(np.ascontiguousarray(tokens, np.int32).tobytes()).hexdigest()[:32]
        entry = {"completions": digest, "replaced": np.flatnonzero(replaced).tolist()}
        with self._lock:
            before, self._replaced = self._replaced, entry
            if before is None and self._title:
                self._write([entry])
        if before in (None, entry):
            return True
        _log.warning(
            "%s comes out differently than when it was first run: programs on this machine are not the same to the bit",
            self._title,
        )
        return False

    def end(self) -> None:
        """Closes the step's file; what is judged from here on is not recorded."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file, self._title, self._known, self._replaced = None, "", {}, None
            self.timed_out = self.replayed = 0

    def forget(self, name: str, upto: int) -> None:
        """Deletes the journals of ``name`` up to and with step ``upto``, which a checkpoint has made needless."""
        for path in self._folder.glob(f"{name}_*.jsonl"):
            number = re.fullmatch(rf"{re.escape(name)}_(\d+)\.p\d+\.jsonl", path.name)
            if number and int(number[1]) <= upto:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where there is more in it, or nothing was ever judged
            self._folder.rmdir()

    def _take(self, entry: dict[str, Any]) -> None:
        if "completions" in entry:
            self._replaced = entry
        else:
            self._known[entry["key"]] = Verdict(entry["correct"], entry["answer"], entry["reason"], entry["timed_out"])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            return
        with spared_when_full(f"the journal of {self._title}"):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = Growing(self._folder / f"{self._title}.p{self._process}.jsonl")
            self._file.append("".join(json.dumps(entry) + "\n" for entry in entries).encode())


def _key(gold: str, text: str) -> str:
    return hashlib.sha256(json.dumps([gold, text]).encode()).hexdigest()[:32]


def _fields(verdict: Verdict) -> dict[str, Any]:
    return {
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "timed_out": bool(verdict.timed_out),
    }


def _entries(path: pathlib.Path, mine: bool) -> list[dict[str, Any]]:
    """The lines of a journal but for a last one that a kill cut short, which is taken off a file of this process."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if mine and len(whole) < len(data):
        os.truncate(path, len(whole))  # so that the next line starts anew
    entries = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            _log.warning("%s line %d is damaged; what it says is judged again", path, number)
    return entries
