"""Denoising as it happens, on a terminal: masks turn into words, hints in a colour of their own, steps are counted.

The canvas is drawn over itself after every step. At the end it gives way to the plain text.
"""

import dataclasses
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np

from igpo_jax.commands.pieces import columns, marker
from igpo_jax.data.token_texts import token_texts
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.stepwise import Moment
from igpo_jax.pages.text import printable
from igpo_jax.training.console import format_duration, styled

MASK = "░"
_STYLES = {"hint": "yellow", "new": "green", "mask": "dim", "special": "dim"}
_BAR = 24


@dataclasses.dataclass(frozen=True)
class Cell:
    """The text of one token and what it is: "hint", "new" (just revealed), "known", "mask" or "special"."""

    text: str
    kind: str


def shows(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can be drawn on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Live:
    """Draws one canvas of C tokens.

    Args:
      tokenizer: turns tokens into text.
      sampler: says how many steps and blocks there are.
      hints: (C,) int32, -1 where free.
      stream: the terminal.
      clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampler: Sampler,
        hints: np.ndarray,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._tokenizer, self._sampler, self._stream, self._clock = tokenizer, sampler, stream, clock
        self._given = hints >= 0
        self._before = np.where(self._given, hints, tokenizer.mask_id)
        self._begin, self._drawn, self._forwards = clock(), 0, 0

    def __enter__(self) -> "Live":
        self._stream.write("\033[?25l")
        self._draw("compiling ...", self._before)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.write("\033[?25h")
        self._stream.flush()

    def show(self, moment: Moment) -> None:
        """Draws the canvas after a step."""
        self._forwards += 1
        if self._forwards == 1:
            self._begin = self._clock()  # the first step carried the compilation
        done, total = moment.step + 1, self._sampler.steps
        bar = "━" * (_BAR * done // total)
        head = f"step {done:>{len(str(total))}}/{total}  block {moment.block + 1}/{self._sampler.blocks}  "
        self._draw(head + styled(bar.ljust(_BAR, "─"), "cyan", self._stream), moment.tokens[0])

    def finish(self, tokens: np.ndarray) -> None:
        """Replaces the drawing by the text (C tokens up to the first end token), and says what it took."""
        self._before = tokens
        cells = cells_of(self._tokenizer, tokens, self._given, tokens)
        ends = np.flatnonzero(tokens == self._tokenizer.eos_id)
        kept = cells[: ends[0]] if len(ends) else cells
        self._stream.write(self._erase() + self._line(kept).strip() + "\n")
        seconds = self._clock() - self._begin
        summary = (
            f"{self._forwards} steps, {len(kept)} of {len(cells)} tokens before the end, {format_duration(seconds)}"
        )
        self._stream.write(styled(summary, "dim", self._stream) + "\n")
        self._drawn = 0

    def _draw(self, head: str, tokens: np.ndarray) -> None:
        width, height = shutil.get_terminal_size()
        cells = cells_of(self._tokenizer, tokens, self._given, self._before)
        lines, active = wrap(cells, max(width - 1, 10))
        room = max(height - 3, 1)
        # A canvas higher than the screen cannot be drawn over: show the part where something happens.
        first = max(0, min(active - room // 2, len(lines) - room))
        shown = [self._line(line) for line in lines[first : first + room]]
        self._stream.write(self._erase() + "\n".join([head, *shown]) + "\n")
        self._stream.flush()
        self._drawn, self._before = len(shown) + 1, tokens

    def _erase(self) -> str:
        return f"\033[{self._drawn}F\033[J" if self._drawn else ""

    def _line(self, cells: Sequence[Cell]) -> str:
        groups = itertools.groupby(cells, key=lambda cell: cell.kind)
        return "".join(self._styled("".join(cell.text for cell in group), kind) for kind, group in groups)

    def _styled(self, text: str, kind: str) -> str:
        if kind == "hint" and text.strip() and not styled("", "yellow", self._stream):
            return f"[{text}]"  # without colours hints still have to stand out
        return styled(text, _STYLES[kind], self._stream) if text and kind in _STYLES else text


def cells_of(tokenizer: Tokenizer, tokens: np.ndarray, given: np.ndarray, before: np.ndarray) -> list[Cell]:
    """One cell per token of a canvas, its text made harmless.

    Args:
      tokenizer: turns tokens into text.
      tokens: (C,) int32, in part masks.
      given: (C,) bool, hints.
      before: (C,) int32, the canvas one step earlier.
    """
    cells = []
    for position, text in enumerate(token_texts(tokenizer, tokens, tokenizer.mask_id)):
        token = int(tokens[position])
        if token == tokenizer.mask_id:
            cells.append(Cell(MASK, "mask"))
        elif not text:
            cells.append(Cell(printable(marker(tokenizer, token)), "special"))
        else:
            kind = "new" if before[position] == tokenizer.mask_id else "known"
            cells.append(Cell(printable(text).replace("\t", " "), "hint" if given[position] else kind))
    return cells


def wrap(cells: Sequence[Cell], width: int) -> tuple[list[list[Cell]], int]:
    """Breaks cells into lines of at most ``width`` columns, and at line ends in their text.

    Returns:
      The lines, and the number of the line with the first mask (the last line where there is none).
    """
    lines: list[list[Cell]] = [[]]
    used, active = 0, -1
    for cell in cells:
        for number, part in enumerate(cell.text.split("\n")):
            if number or (used and used + columns(part) > width):
                lines.append([])
                used = 0
            for piece in _cut(part, width):
                if used and used + columns(piece) > width:
                    lines.append([])
                    used = 0
                lines[-1].append(Cell(piece, cell.kind))
                used += columns(piece)
        if cell.kind == "mask" and active < 0:
            active = len(lines) - 1
    return lines, active if active >= 0 else len(lines) - 1


def _cut(text: str, width: int) -> list[str]:
    """A text in pieces that fit a line; nearly always the text itself."""
    pieces = [""]
    for character in text:
        if columns(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces
