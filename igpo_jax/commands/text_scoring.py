"""Likelihood bounds of answers given prompts, JSON lines in and out."""

import argparse
import contextlib
import json
import math
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from igpo_jax.commands.checkpoint import Opened
from igpo_jax.diffusion import monte_carlo
from igpo_jax.errors import UserError


def score(chosen: argparse.Namespace, opened: Opened, settings: monte_carlo.MonteCarlo) -> None:
    """Scores every line {"prompt": ..., "answer": ...} of ``--input`` into a line of ``--output``.

    A line keeps its fields and gets ``bound``, a lower bound of log p(answer | prompt) in nats, its ``error`` (standard
    error over the samples' groups, null for one group), and how many ``tokens`` and ``samples`` it took. Draws depend
    on --seed and the pair, not on the line's place.
    """
    rows = list(read_rows(chosen.input))
    pairs = [tokens_of(row["prompt"], row["answer"], opened, chosen.raw, place) for place, row in rows]
    with _output(chosen.output) as file, opened.on_mesh():
        for (place, row), (prompt, answer) in zip(rows, pairs, strict=True):
            rng = np.random.default_rng([chosen.seed, zlib.crc32(f"{row['prompt']}\0{row['answer']}".encode())])
            try:
                samples = monte_carlo.draw_bound(
                    opened.policy, opened.model, prompt, answer, settings, rng, cfg_scale=chosen.cfg
                )
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            result = row | {
                "bound": float(samples.mean()),
                "error": standard_error(samples, settings.of(len(answer)).group),
                "tokens": len(answer),
                "samples": len(samples),
            }
            print(json.dumps(result), file=file, flush=True)


def standard_error(samples: np.ndarray, group: int) -> float | None:
    """Standard error of the mean from the spread of the groups' means, which are independent; None for one group."""
    means = samples.reshape(-1, group).mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def tokens_of(prompt: str, answer: str, opened: Opened, raw: bool, place: str) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens of a prompt and of its answer.

    With ``raw`` both are encoded as one text, and blanks between them belong to the answer, as in LLaDA's evaluation;
    else the prompt goes into its template, and the answer is what the model would write behind it.

    Raises:
      UserError: one of them is empty or cannot be written, with the line's place.
    """
    try:
        if not answer.strip():
            raise UserError("the answer is empty, so there is nothing to score")
        if not raw:
            return opened.prompt_ids(prompt), opened.encode(answer)
        context = prompt.rstrip(" ")
        before = opened.prompt_ids(context, raw=True)
        return before, opened.encode(prompt + answer)[len(before) :]
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def read_rows(place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of every JSON line that is not blank; "-" reads standard input.

    Raises:
      UserError: there is no such file, or a line is not an object with the texts "prompt" and "answer".
    """
    name = "standard input" if place == "-" else place
    if place != "-" and not pathlib.Path(place).is_file():
        raise UserError(f"--input names {place}, which is not a file; expected JSON lines with prompt and answer")
    with contextlib.nullcontext(sys.stdin) if place == "-" else open(place, encoding="utf-8") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{name}:{number}", _row(line, f"{name}:{number}")
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8 text behind line {number} ({error.reason}); convert it") from error


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}); expected an object with prompt and answer") from error
    found = sorted(row) if isinstance(row, dict) else type(row).__name__
    for field in ("prompt", "answer"):
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{place} has no text '{field}' (found: {found}), expected prompt and answer as texts")
    return row


@contextlib.contextmanager
def _output(place: str) -> Iterator[IO[str]]:
    if place == "-":
        yield sys.stdout
        return
    with open(place, "w", encoding="utf-8") as file:
        yield file
