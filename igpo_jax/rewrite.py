"""Rewrites verbose worked solutions into concise ones with any OpenAI-compatible endpoint.

Usage:
  python -m igpo_jax.rewrite --data=traces.jsonl --model=NAME --endpoint=https://HOST/v1 --output=rewrites/first
  python -m igpo_jax.rewrite --dataset=gsm8k --data=DIR --model=NAME --output=rewrites/gsm8k

Rows have ``question``, ``answer`` and ``reasoning``. A rewritten trace is accepted when the judge finds the same final
answer in it and it is not longer than its bound. OUTPUT/rewritten.jsonl has the accepted rows, ready for training with
``--config.data.name=jsonl``; every reply is kept in OUTPUT/replies.jsonl. The same command again goes on where it was.
The API key is read from the environment (``--api_key_env``) and stored nowhere.

Exit codes: 0 when every row is decided, 1 when some are open (run it again), 2 for bad input, 130 after Ctrl-C, 143
after SIGTERM.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from igpo_jax import cli
from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.splits import open_split
from igpo_jax.errors import UserError, named_as
from igpo_jax.pages.text import printable
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rewriting.prompt import load_prompt
from igpo_jax.rewriting.run import Rewriting, check_rows
from igpo_jax.rewriting.settings import RewriteSettings
from igpo_jax.rewriting.store import Store
from igpo_jax.rewriting.summary import write_outputs
from igpo_jax.training import console

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}


def define(values: flags.FlagValues) -> None:
    """Declares the command's flags: its own, and one for each field of the settings."""
    flags.DEFINE_string("dataset", "jsonl", "Name of the data set, as in --config.data.name.", flag_values=values)
    flags.DEFINE_string("data", "", "Where it lies, as in --config.data.path.", flag_values=values)
    flags.DEFINE_integer("limit", 0, "First rows only, 0 = all.", flag_values=values)
    flags.DEFINE_string("output", "", "Folder of the run; made, or continued.", flag_values=values)
    flags.DEFINE_string("prompt", "", "File with {question} and {reasoning}; empty = our own.", flag_values=values)
    for field in dataclasses.fields(RewriteSettings):
        _DEFINE[type(field.default)](field.name, field.default, field.metadata["help"], flag_values=values)


def main(command: cli.Command) -> int:
    """Asks for every open row, then writes the accepted ones and the summary."""
    given = command.flags
    fields: dict[str, Any] = {field.name: given[field.name].value for field in dataclasses.fields(RewriteSettings)}
    settings = RewriteSettings(**fields)
    prompt, output, key = load_prompt(given.prompt), pathlib.Path(given.output), _api_key(settings.api_key_env)
    examples = _rows(given.dataset, given.data, given.limit, output)
    identity = settings.fixed() | {"prompt_hash": prompt.hash, "prompt": prompt.text, "rows": _fingerprint(examples)}
    store = Store(output, identity)
    try:
        with JudgePool() as judge:
            done = sum(row.id in store.decisions for row in examples)
            console.note(f"{len(examples)} rows, {done} decided already; prompt {prompt.hash}; {output}")
            progress = _Progress(examples, store, done)
            stopped = Rewriting(examples, settings, prompt, store, judge, key, progress.step).run()
        summary = write_outputs(examples, settings, store, prompt.hash)
    finally:
        store.close()
    _print(summary, stopped, output)
    if stopped.startswith("stopped by"):
        return 130 if "SIGINT" in stopped else 143
    return 1 if summary["open"] else 0


def _api_key(variable: str) -> str:
    """The key of the environment, "" for none; one that no header can hold is refused without showing it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"${variable} holds a character that no API key has; copy the key again, without line ends")
    return key


def _rows(name: str, path: str, limit: int, output: pathlib.Path) -> Sequence[Example]:
    """The rows to rewrite: the whole training side of a data set."""
    if name == "jsonl" and not path:
        raise UserError("--data is missing; pass a .jsonl file with the fields question, answer and reasoning")
    if limit < 0:
        raise UserError(f"--limit is {limit}, expected a number of rows, or 0 for all")
    if path and not pathlib.Path(path).exists():
        raise UserError(f"--data={path} does not exist; name the file or folder of the rows")
    data = DataSettings(
        name=name, path=path, sft_fraction=1.0, test_fraction=0.0, on_missing_answer="keep", on_shared_question="keep"
    )
    with named_as({"data.path": "--data"}):
        split = open_split(data, "sft", output / "data")
    examples = split[: limit or None]
    check_rows(examples)
    return examples


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for row in examples:
        digest.update(repr(dataclasses.astuple(row)).encode())
    return f"{len(examples)} rows, sha256 {digest.hexdigest()[:12]}"


class _Progress:
    """A line every now and then: rows decided, the share accepted, rate and time left."""

    def __init__(self, examples: Sequence[Example], store: Store, done: int):
        self._progress = console.Progress(len(examples), "rewrite", done, unit="row")
        self._store, self._done, self._every = store, done, max(1, len(examples) // 50)

    def step(self) -> None:
        """Counts one decided row."""
        self._done += 1
        if self._done % self._every == 0 or self._done == self._progress.total:
            reasons = [decision.reason for decision in self._store.decisions.values()]
            self._progress.update(self._done, {"accepted": f"{100 * reasons.count('accepted') / len(reasons):.0f}%"})


def _print(summary: dict[str, Any], stopped: str, output: pathlib.Path) -> None:
    """The summary as a table, and what to do about open rows."""
    rows: list[tuple[str, Any]] = [("accepted", summary["accepted"])]
    rows += [(f"rejected, {reason.replace('_', ' ')}", count) for reason, count in summary["rejected"].items()]
    rows += [("open", summary["open"])] if summary["open"] else []
    rows += [("requests", summary["requests"]), ("of them failed", summary["failed_requests"])]
    rows += [("prompt tokens", summary["prompt_tokens"]), ("reply tokens", summary["reply_tokens"])]
    rows += [("cost", f"{summary['cost']:.{2 if summary['cost'] >= 1 else 4}f}")] if summary["cost"] else []
    if summary["words_after"]:
        rows += [
            ("median words before", f"{summary['words_before']['median']:g}"),
            ("median words after", f"{summary['words_after']['median']:g}"),
        ]
    console.note(console.table(rows, ("what", "count")))
    if stopped:
        console.note(printable(f"not finished: {stopped}; the same command goes on where it was"))
    elif summary["open"]:
        why = f"{summary['open']} rows got no usable reply ({summary['last_problem']})"
        console.note(printable(f"{why}; the same command asks for them again"))
    console.note(f"the accepted rows are in {output / 'rewritten.jsonl'}, every reply in {output / 'replies.jsonl'}")


if __name__ == "__main__":
    cli.run(main, define=define, requires=("output",), common=())
