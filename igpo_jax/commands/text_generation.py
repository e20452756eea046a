"""Generation from text: one prompt, or a conversation; shown while it happens, and kept as JSON or as a page."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from igpo_jax.commands import hint_flags, live, page, sampler_flags, trajectory
from igpo_jax.commands.checkpoint import Opened
from igpo_jax.diffusion import noise
from igpo_jax.diffusion.denoise import Denoised
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.stepwise import denoise_stepwise
from igpo_jax.errors import UserError
from igpo_jax.pages.text import printable
from igpo_jax.parallel.sharding import to_host

#: Prompts are padded to multiples of this, so that the turns of a conversation share few programs.
_ROOM = 64


def generate(chosen: argparse.Namespace, opened: Opened) -> None:
    """Completes ``--prompt`` and shows, prints or writes the result."""
    sampler = sampler_flags.read(chosen, opened)
    prompt = opened.prompt_ids(chosen.prompt, chosen.raw)
    hints = _hints(chosen, opened, sampler.length)
    printed = "-" in (chosen.json, chosen.html)
    watched = live.shows(sys.stdout) and not chosen.no_live and not printed
    done = complete(opened, sampler, prompt, hints, chosen.seed, watched=watched)
    result = trajectory.of(chosen.prompt, done, sampler, opened.words())
    if chosen.json:
        _write(chosen.json, json.dumps(result.to_json(), allow_nan=False) + "\n")
    if chosen.html:
        about = {"checkpoint": opened.path, "dtype": opened.model.compute.dtype, "seed": chosen.seed, **vars(sampler)}
        _write(chosen.html, page.render(result, about))
    if not watched and not printed:
        print(printable(result.text))


def complete(
    opened: Opened,
    sampler: Sampler,
    prompt: Sequence[int],
    hints: np.ndarray,
    seed: int,
    turn: int = 0,
    *,
    watched: bool,
) -> Denoised:
    """Denoises one completion, drawn on the terminal where ``watched``; the tokens are the same either way.

    Args:
      opened: the model.
      sampler: the settings.
      prompt: n tokens.
      hints: (C,) int32, -1 where free.
      seed: of the draws.
      turn: number of the completion in a conversation; each has draws of its own.
      watched: draw every step on standard output.

    Raises:
      UserError: the row is too long for the model.
    """
    longest = opened.model.config.max_sequence_length - sampler.length
    if len(prompt) > longest:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and --length is {sampler.length}, but the model's rows have at most "
            f"{longest + sampler.length}; shorten one of them"
        )
    width = min(-(-len(prompt) // _ROOM) * _ROOM, longest)
    tokens, valid = np.zeros((1, width), np.int32), np.zeros((1, width), bool)
    tokens[0, : len(prompt)], valid[0, : len(prompt)] = prompt, True
    keys = noise.row_keys(jax.random.key(seed), "generate", turn, np.arange(1))
    with opened.on_mesh(), contextlib.ExitStack() as stack:
        screen = stack.enter_context(live.Live(opened.words(), sampler, hints, sys.stdout)) if watched else None
        done = denoise_stepwise(
            opened.policy,
            opened.model,
            sampler,
            tokens,
            valid,
            noise.KeyNoise(keys),
            screen.show if screen else lambda _: None,
            hints=hints[None],
        )
        if screen:
            screen.finish(to_host(done.tokens)[0])
    return done


def chat(chosen: argparse.Namespace, opened: Opened) -> None:
    """Answers line after line from standard input, each turn with those before it (ML-GSAI/LLaDA ``chat.py``).

    The conversation goes on from the tokens: a new turn loses its begin token, earlier answers their end tokens.
    Without a chat template there are no turns, so every line is a prompt of its own.
    """
    sampler, words = sampler_flags.read(chosen, opened), opened.words()
    together = words.has_chat and not chosen.raw
    ask = sys.stdin.isatty()
    if ask:
        about = "/new starts over" if together else "no chat template, so every line is a prompt of its own"
        print(f"{about}, /quit or Ctrl-D ends")
    history: list[int] = []
    free = np.full(sampler.length, -1, np.int32)
    for turn, line in enumerate(_lines(ask)):
        if line == "/new":
            history = []
            continue
        try:
            new = opened.prompt_ids(line, chosen.raw)
            begun = history and new[0] == words.fast.bos_token_id
            prompt = history + new[bool(begun) :] if together else new
            watched = not chosen.no_live and live.shows(sys.stdout)
            done = complete(opened, sampler, prompt, free, chosen.seed, turn, watched=watched)
        except UserError as error:
            if not ask:
                raise
            print(f"error: {error}")
            continue
        answer = to_host(done.tokens)[0]
        if not watched:
            print(printable(words.decode(answer, until_eos=True)), flush=True)
        history = [*prompt, *answer[answer != words.eos_id].tolist()]


def _lines(ask: bool) -> Iterator[str]:
    """Lines of standard input without the empty ones, up to its end or /quit."""
    while True:
        if ask:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


def _hints(chosen: argparse.Namespace, opened: Opened, length: int) -> np.ndarray:
    if chosen.trace is not None:
        if chosen.hint:
            raise UserError("--hint and --trace both say what stands on the canvas; leave one of them out")
        return hint_flags.from_trace(chosen, opened, length)
    return hint_flags.written(chosen.hint, opened.encode, length)


def _write(place: str, text: str) -> None:
    """Writes to a file, or to standard output where the name is "-"."""
    if place == "-":
        sys.stdout.write(text)
    else:
        pathlib.Path(place).write_text(text, encoding="utf-8")
