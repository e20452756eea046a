"""What a run prints: one line a logged step, notes and tables; plain text unless the stream is a terminal."""

import collections
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_WINDOW = 20


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Returns ``text`` in a style ("bold", "dim", "red", ...) where ``stream`` is a terminal that wants colours.

    Pipes, files, ``TERM=dumb`` and a set ``NO_COLOR`` get the plain text.
    """
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{_STYLES[style]}m{text}\033[0m"


def note(text: str, stream: TextIO | None = None) -> None:
    """Prints a line or a block of its own at once, even into a pipe."""
    print(text, file=stream or sys.stdout, flush=True)


def warn(text: str, stream: TextIO | None = None) -> None:
    """Prints a line that should not be missed."""
    note(styled(f"warning: {text}", "yellow", stream), stream)


def format_duration(seconds: float) -> str:
    """Returns a duration in at most two units: "0.8s", "42s", "3m 05s", "2h 07m", "4d 03h"."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


def format_number(value: float) -> str:
    """Returns a number in about four digits: "12", "0.5312", "3.1e-07", "nan"."""
    if isinstance(value, int) or (value == value and abs(value) < 1e6 and float(value).is_integer()):
        return str(int(value))
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1000 else f"{value:.3g}"


class Progress:
    """Prints one line a logged step: label, step of total, values, rate and time left.

    On a terminal too narrow for all of it the last values are left out; metrics.jsonl has them.
    The rate is taken over the last lines only, so that the compilation in the first step does not spoil it.

    Args:
      total: step at which the stage ends.
      label: name of the stage.
      start: steps already done before this process began.
      stream: where to print; standard output by default.
      clock: seconds on a clock that never goes back.
      unit: what is counted.
    """

    def __init__(
        self,
        total: int,
        label: str,
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
    ) -> None:
        self.total = total
        self._unit = unit
        self.label = label
        self._stream = stream or sys.stdout
        self._clock = clock
        self._begin = clock()
        self._seen: collections.deque[tuple[float, int]] = collections.deque([(self._begin, start)], maxlen=_WINDOW)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Prints the line of ``step``.

        Args:
          step: steps done so far, this one included.
          values: name to number or text, shown in the order given.
        """
        self._seen.append((self._clock(), step))
        if len(self._seen) == 3 and self._seen[0][0] == self._begin:
            self._seen.popleft()
        width = len(str(self.total))
        share = 100 * step // self.total if self.total else 100
        head, count = f"{self.label:<5}", f"{step:>{width}}/{self.total} {share:>3}%"
        tail = self._tail(step)
        shown = [(name, _show(value)) for name, value in values.items()]
        while shown and not self._fits(head, count, *(f"{name} {text}" for name, text in shown), tail):
            shown.pop()
        body = "  ".join(f"{styled(name, 'dim', self._stream)} {text}" for name, text in shown)
        parts = (styled(head, "bold", self._stream), count, body, styled(tail, "cyan", self._stream) if tail else "")
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)

    def _fits(self, *parts: str) -> bool:
        """Whether the parts stay on one line; a pipe or a file takes lines of any length."""
        if not self._stream.isatty():
            return True
        return len("  ".join(part for part in parts if part)) < shutil.get_terminal_size().columns

    def _tail(self, step: int) -> str:
        (first_time, first_step), (last_time, last_step) = self._seen[0], self._seen[-1]
        if last_time <= first_time or last_step <= first_step:
            return ""
        rate = (last_step - first_step) / (last_time - first_time)
        speed = f"{rate:.2f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}"
        return f"{speed}, {format_duration((self.total - step) / rate)} left"

    def elapsed(self) -> float:
        """Returns the seconds since this object was made."""
        return self._clock() - self._begin


def _show(value: Any) -> str:
    return value if isinstance(value, str) else format_number(value)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Returns rows under a header as aligned text: columns of numbers to the right, others to the left.

    A text counts as a number where it starts with one, as in "45.3%" or "2m 05s".

    Args:
      rows: cells, numbers or text; each row as long as the header.
      header: column names.
    """
    cells = [[_show(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [all(re.match(r"[-+]?(\d|nan|inf|$)", row[i]) for row in cells) and bool(cells) for i in range(len(header))]

    def line(parts: Sequence[str]) -> str:
        aligned = [p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True)]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(list(header)), rule, *(line(row) for row in cells)])
