"""Hints from the command line: texts at positions, or pieces of a known solution placed as in training."""

import argparse
import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from igpo_jax.commands.arguments import note
from igpo_jax.commands.checkpoint import Opened
from igpo_jax.errors import UserError, named_as
from igpo_jax.rewards.extraction import extract_answer
from igpo_jax.rl import hints


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    group = parser.add_argument_group("hints")
    group.add_argument(
        "--hint", action="append", default=[], metavar="TEXT@POSITION", help="text that stands at a token of the canvas"
    )
    group.add_argument("--trace", metavar="TEXT", help="a solution of which --hint-ratio is shown")
    group.add_argument("--hint-ratio", type=float, nargs="+", metavar="R", help="share of its chunks; one for each row")
    group.add_argument("--hint-placement", choices=hints.PLACEMENTS, help="where chunks go (official with its preset)")
    group.add_argument("--hint-seed", type=int, metavar="N", help="of the placement; row r uses N + r (default --seed)")
    group.add_argument("--chunk-min", type=int, metavar="N", help="shortest chunk in tokens")
    group.add_argument("--chunk-max", type=int, metavar="N", help="longest chunk")
    group.add_argument("--max-spacing", type=int, metavar="N", help="official placement: widest gap between chunks")
    group.add_argument("--answer-room", type=int, metavar="N", help="positions at the end that stay free")
    group.add_argument("--free-last-chunk", action="store_true", help="official placement: the last may stay masked")


def written(texts: Sequence[str], encode: Callable[[str], list[int]], length: int) -> np.ndarray:
    """The hints ``TEXT@POSITION`` on a canvas.

    Args:
      texts: as given; the last @ is the one that counts, positions are tokens from 0.
      encode: turns a text into tokens.
      length: C, tokens of the canvas.

    Returns:
      (C,) int32, -1 where free.

    Raises:
      UserError: a hint is not of this form, leaves the canvas, or meets another one.
    """
    canvas = np.full(length, -1, np.int32)
    owner: dict[int, str] = {}
    for given in texts:
        text, _, place = given.rpartition("@")
        if not text or not place.strip().isdecimal():
            raise UserError(f"--hint is {given!r}, expected TEXT@POSITION with a position from 0, as in 'so 337@12'")
        tokens, start = encode(text), int(place)
        if not tokens:
            raise UserError(f"--hint {given!r} has no tokens; give it some text")
        if start + len(tokens) > length:
            raise UserError(
                f"--hint {given!r} covers positions {start} to {start + len(tokens) - 1}, outside the canvas of "
                f"{length}; move it or raise --length"
            )
        for position in range(start, start + len(tokens)):
            if position in owner:
                raise UserError(
                    f"--hint {given!r} overlaps --hint {owner[position]!r} at position {position}; move one of them"
                )
            owner[position] = given
        canvas[start : start + len(tokens)] = tokens
    return canvas


def from_trace(chosen: argparse.Namespace, opened: Opened, length: int) -> np.ndarray:
    """Hints (C,) from the solution in --trace; with the paper's placement its answer stays hidden.

    Raises:
      UserError: flags are missing or impossible, or the trace states no answer to hide.
    """
    tokens, offsets = opened.words().encode_with_offsets(chosen.trace)
    settings, (ratio,) = _settings(chosen, opened), ratios(chosen, 1)
    if settings.placement == "official":
        return official(tokens, chosen, opened, length, 1)[0]
    gold = extract_answer(chosen.trace).answer
    if gold is None:
        raise UserError(
            "--trace states no final answer, so none can be kept from the model; end it with '#### VALUE', or choose "
            "--hint-placement official"
        )
    protected = hints.protected_tokens(chosen.trace, offsets, gold, settings.exclude)
    return _counted(hints.place_hints(tokens, protected, length, ratio, np.random.default_rng(seed(chosen)), settings))


def official(trace: np.ndarray, chosen: argparse.Namespace, opened: Opened, length: int, rows: int) -> np.ndarray:
    """Hints (B, C) from a solution's tokens (n,), placed as the released code does with the same seeds."""
    settings = _settings(chosen, opened)
    if settings.placement != "official":
        raise UserError(
            "hints from an array 'trace' are placed as the released code does, since token ids do not tell where the "
            "answer stands; choose --hint-placement official, or pass 'hints'"
        )
    return np.stack(
        [
            _counted(
                hints.place_hints_official(
                    trace, length, ratio, random.Random(seed(chosen) + row), settings, not chosen.free_last_chunk
                )
            )
            for row, ratio in enumerate(ratios(chosen, rows))
        ]
    )


def ratios(chosen: argparse.Namespace, rows: int) -> list[float]:
    """One ratio for each row."""
    given = chosen.hint_ratio
    if not given:
        raise UserError("a trace is there but --hint-ratio is missing; say which share to show, as in --hint-ratio 0.4")
    if len(given) not in (1, rows):
        raise UserError(f"--hint-ratio has {len(given)} values for {rows} rows; give one, or one for each row")
    return given * rows if len(given) == 1 else given


def seed(chosen: argparse.Namespace) -> int:
    """The seed of the placement."""
    return chosen.seed if chosen.hint_seed is None else chosen.hint_seed


def _settings(chosen: argparse.Namespace, opened: Opened) -> hints.HintSettings:
    base = opened.run.hints if opened.run else hints.HintSettings()
    if chosen.preset == "official" and not opened.run:
        base = dataclasses.replace(base, placement="official")
    names = {"chunk_min": "chunk_min", "chunk_max": "chunk_max", "max_spacing": "max_spacing"}
    names |= {"answer_room": "answer_room", "placement": "hint_placement"}
    given = {field: getattr(chosen, flag) for field, flag in names.items() if getattr(chosen, flag) is not None}
    with named_as({"rl.hints.": "--", "_": "-"}):
        return dataclasses.replace(base, **given)


def _counted(placed: hints.Hints) -> np.ndarray:
    note(f"hints: {placed.chunks_chosen} of {placed.chunks} chunks, {placed.chunks_dropped} without room")
    return placed.canvas
