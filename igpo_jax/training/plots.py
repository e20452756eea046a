"""The curves of a run as PNG files, drawn from ``metrics.jsonl`` alone: one picture a subject, and all in one overview.

A subject whose metrics were never logged is left out.
"""

import dataclasses
import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from igpo_jax.training import accounting
from igpo_jax.training.metrics import Row, read_metrics
from igpo_jax.training.subjects import PERCENT, SUBJECTS, Subject, evaluation_labels, kind_of, metrics_of

# Okabe and Ito's palette, which stays apart under the common colour blindnesses.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Phases that pass while others are under way: drawn as lines over the stack, not as layers of it.
_BESIDE = tuple(f"{name}_seconds" for name in accounting.BESIDE)
#: Drawing again while a run goes on takes at most one part in so many of its time.
_SHARE = 50


@dataclasses.dataclass(frozen=True)
class _Curve:
    label: str
    metric: str
    x: np.ndarray  # (n,) steps, or the number of the evaluation
    y: np.ndarray  # (n,) values, scaled


def plot_run(directory: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draws ``directory/plots/SUBJECT.png`` for every subject that was logged, and ``overview.png`` with all of them.

    Args:
      directory: a run folder with ``metrics.jsonl``.

    Returns:
      The files written, the overview last; empty where nothing was logged.
    """
    rows = read_metrics(directory)
    drawn = [(subject, curves) for subject in SUBJECTS if (curves := _curves(subject, rows))]
    if not drawn:
        return []
    folder = pathlib.Path(directory) / "plots"
    folder.mkdir(exist_ok=True)
    written = []
    for subject, curves in drawn:
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        _draw(figure.add_subplot(), subject, curves, rows)
        written.append(_save(figure, folder / f"{subject.name}.png", dpi=150))
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.3 * lines), layout="constrained")
    for place, (subject, curves) in enumerate(drawn, 1):
        _draw(figure.add_subplot(lines, columns, place), subject, curves, rows)
    written.append(_save(figure, folder / "overview.png", dpi=110))
    return written


class Painter:
    """Draws the pictures of a run again while it goes on, seldom enough to cost little of its time.

    Args:
      directory: the run folder.
      pause: seconds between two drawings at least; slow drawings lie further apart.
      clock: seconds on a clock that never goes back.
    """

    def __init__(
        self, directory: str | os.PathLike[str], pause: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._pause, self._clock = directory, pause, clock
        self._next = clock() + pause

    def row_written(self) -> None:
        """Draws all pictures where the last time is long enough ago."""
        begin = self._clock()
        if begin < self._next:
            return
        plot_run(self._directory)
        spent = self._clock() - begin
        self._next = begin + spent + max(self._pause, _SHARE * spent)


def _save(figure: Figure, path: pathlib.Path, dpi: int) -> pathlib.Path:
    """Writes a picture in one atomic move: somebody may be looking at the one before."""
    FigureCanvasAgg(figure)
    draft = path.with_name(f".{path.name}.draft")
    figure.savefig(draft, dpi=dpi, format="png")
    return draft.replace(path)


def _curves(subject: Subject, rows: Sequence[Row]) -> list[_Curve]:
    """Every metric of the subject that has at least one finite value, one curve a stage."""
    mine = [row for row in rows if kind_of(row.stage) == subject.stage]
    groups = {"": mine}
    if subject.stage == "rl":
        groups = {stage: [row for row in mine if row.stage == stage] for stage in dict.fromkeys(r.stage for r in mine)}
    curves = []
    for stage, members in groups.items():
        for metric, label in metrics_of(subject, members):
            prefix = f"{stage}: " if len(groups) > 1 else ""
            curves.append(_curve(prefix + label, metric, subject, members))
    return [curve for curve in curves if np.isfinite(curve.y).any()]


def _curve(label: str, metric: str, subject: Subject, rows: Sequence[Row]) -> _Curve:
    # Evaluations of several stages share one axis, so they are numbered; each stage counts its own steps.
    points = [
        (number if subject.stage == "eval" else row.step, row.values[metric])
        for number, row in enumerate(rows)
        if metric in row.values
    ]
    x, y = np.array(points, float).T
    return _Curve(label, metric, x, y * subject.scale)


def _draw(axes: Axes, subject: Subject, curves: Sequence[_Curve], rows: Sequence[Row]) -> None:
    if subject.stacked:
        _stack(axes, curves)
    else:
        _lines(axes, curves)
    if subject.stage == "eval":
        _intervals(axes, [row for row in rows if kind_of(row.stage) == "eval"], curves)
        _label_evaluations(axes, evaluation_labels(rows))
    else:
        axes.set_xlabel("update" if subject.stage == "sft" else "step (one rollout)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_title(subject.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(subject.ylabel)
    if subject.log and all((curve.y[np.isfinite(curve.y)] > 0).all() for curve in curves):
        axes.set_yscale("log")
    elif subject.scale == PERCENT and axes.get_ylim()[1] > 30:
        axes.set_ylim(0, 100)
        # A curve at 0 or 100% shows its whole width and its markers.
        for line in axes.lines:
            line.set_clip_on(False)
    elif not subject.log:
        _from_zero(axes, subject, curves)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        place = {"loc": "upper left", "ncols": 3} if subject.stacked else {"loc": "best"}
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8.5, **place)


def _from_zero(axes: Axes, subject: Subject, curves: Sequence[_Curve]) -> None:
    """A linear axis that shows zero, with room for the legend above a stack."""
    low = min((float(np.nanmin(curve.y)) for curve in curves), default=0.0)
    bottom, top = (axes.get_ylim()[0] if low < 0 else 0.0), axes.get_ylim()[1]
    if not any(np.nan_to_num(curve.y).any() for curve in curves):
        top = 1.0
    axes.set_ylim(bottom, top * (1.35 if subject.stacked else 1.0))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))


def _lines(axes: Axes, curves: Sequence[_Curve]) -> None:
    """Few points as they are; many as a running mean over a faint trace."""
    for curve, colour in zip(curves, _palette(len(curves)), strict=True):
        smooth = running_mean(curve.y, max(1, len(curve.y) // 30))
        if len(curve.y) > 30:
            axes.plot(curve.x, curve.y, color=colour, alpha=0.25, linewidth=0.8)
        marker = "o" if len(curve.y) <= 30 else ""
        axes.plot(curve.x, smooth, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=curve.label)


def _stack(axes: Axes, curves: Sequence[_Curve]) -> None:
    beside = [curve for curve in curves if curve.metric in _BESIDE]
    for curve, style in zip(beside, itertools.cycle(("--", ":"))):
        axes.plot(curve.x, curve.y, color="black", linewidth=1.2, linestyle=style, label=f"{curve.label}, within")
    curves = [curve for curve in curves if curve.metric not in _BESIDE]
    if not curves:
        return
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    layers = np.zeros((len(curves), len(x)))
    for layer, curve in zip(layers, curves, strict=True):
        layer[np.searchsorted(x, curve.x)] = np.nan_to_num(curve.y)
    axes.stackplot(x, layers, labels=[curve.label for curve in curves], colors=_palette(len(curves)), alpha=0.85)


def _palette(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _intervals(axes: Axes, rows: Sequence[Row], curves: Sequence[_Curve]) -> None:
    """The 95% interval of pass@1 as a band, where it was logged."""
    if not any(curve.metric == "pass_at_1" for curve in curves):
        return
    keys = ("pass_at_1_low", "pass_at_1_high")
    points = [
        (n, *(row.values[key] for key in keys)) for n, row in enumerate(rows) if all(k in row.values for k in keys)
    ]
    if points:
        x, low, high = np.array(points, float).T
        bars: Callable[..., object] = axes.vlines if len(x) < 3 else axes.fill_between
        bars(x, low * PERCENT, high * PERCENT, color=_COLOURS[0], alpha=0.18, label="95% interval of pass@1")


def _label_evaluations(axes: Axes, labels: Sequence[str]) -> None:
    every = max(1, math.ceil(len(labels) / 8))
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.set_xlabel("evaluation, after this stage or step")


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the centred mean of up to ``window`` finite neighbours at every place, shorter at the ends.

    Args:
      values: (n,) floats; a NaN takes no part.
      window: neighbours, 1 or more; NaN where none of them is finite.
    """
    half = window // 2
    means = np.full(len(values), np.nan)
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        if near.size:
            means[i] = near.mean()
    return means
