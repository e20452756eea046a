"""The picture of a data report: token lengths of prompts and completions, by split."""

import pathlib
from collections.abc import Mapping
from typing import Any


def plot_lengths(reports: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws a histogram for each split and part as a PNG; a dashed line marks the room that rows have.

    Args:
        reports: of `igpo_jax.data.report.split_reports`.
        path: the file, overwritten.
    """
    # The canvas classes instead of pyplot, so that no display and no global state is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(reports) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(reports), 2, squeeze=False)
    for line, (split, report) in zip(axes, reports.items(), strict=True):
        for axis, part in zip(line, ("prompt", "completion"), strict=True):
            _draw(axis, split, part, report)
    figure.savefig(path, format="png", dpi=110)


def _draw(axis: Any, split: str, part: str, report: Mapping[str, Any]) -> None:
    histogram, room = report[f"{part}_histogram"], report[f"{part}_length"]
    width, counts = histogram["bin"], histogram["counts"]
    axis.bar([number * width for number in range(len(counts))], counts, width=width, align="edge", color="#4c72b0")
    axis.axvline(room, color="#c44e52", linestyle="--", linewidth=1, label=f"room: {room}")
    axis.set_title(f"{split}: {part}s of {report['rows']} rows", fontsize=10)
    axis.set_xlabel("tokens", fontsize=9)
    axis.set_ylabel("rows", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
