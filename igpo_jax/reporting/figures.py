"""Curves for the page: every subject of the paper's figures, one series for each metric and group of seeds."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from igpo_jax.reporting.groups import Group
from igpo_jax.reporting.runs import RunFolder
from igpo_jax.training.subjects import PERCENT, SUBJECTS, Subject, evaluation_labels, kind_of, metrics_of

#: Points of one curve; of longer ones neighbours are averaged.
MOST_POINTS = 500
_INTERVAL = ("pass_at_1_low", "pass_at_1_high")


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Where evaluations stand: those of all runs share one axis of names."""

    names: tuple[str, ...]
    rl: str  # what RL stages are called on it: by their name where it is the same in all runs

    def places(self, run: RunFolder) -> list[int]:
        """The place of each of the run's evaluations."""
        return [self.names.index(name) for name in _names(run, self.rl)]


def figures(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """JSON-ready figures, in the order of training/subjects.py; those without a finite value are left out.

    Args:
      groups: runs that differ in their seed alone, together.

    Returns:
      For each figure ``name, title, unit, percent, log, xlabel``, ``ticks`` (names of evaluations, else None) and
      ``series``: ``group`` (its number), ``label`` (of the metric), ``x``, ``y`` and, where there is a band, ``low``
      and ``high``. A series of several seeds holds their mean, and its band goes from the lowest to the highest.
    """
    runs = [run for group in groups for run in group.runs]
    stages = {row.stage for run in runs for row in run.rows if kind_of(row.stage) == "rl"}
    rl = stages.pop() if len(stages) == 1 else "RL"
    axis = _Axis(tuple(_merged([_names(run, rl) for run in runs])), rl)
    found = [_figure(subject, groups, axis) for subject in SUBJECTS if not subject.stacked]
    return [figure for figure in found if figure["series"]]


def events(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Where health findings about RL stand on the axis of steps: ``group``, ``step`` and what was found."""
    return [
        {"group": number, "step": event["step"], "text": f"{run.label}, step {event['step']}: {event['signature']}"}
        for number, group in enumerate(groups)
        for run in group.runs
        for event in run.health
        if kind_of(event["stage"]) == "rl"
    ]


def _figure(subject: Subject, groups: Sequence[Group], axis: _Axis) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        labels: dict[str, str] = {}
        for run in group.runs:
            labels |= dict(metrics_of(subject, _rows(subject, run)))
        for metric, label in labels.items():
            curve = _series(subject, metric, group, axis)
            if curve["x"]:
                series.append({"group": number, "label": label, **curve})
    evaluation = subject.stage == "eval"
    return {
        "name": subject.name,
        "title": subject.title,
        "unit": subject.ylabel,
        "percent": subject.scale == PERCENT,
        "log": subject.log,
        "xlabel": {"eval": "evaluation", "sft": "update"}.get(subject.stage, "step"),
        "ticks": list(axis.names) if evaluation else None,
        "series": series,
    }


def _rows(subject: Subject, run: RunFolder) -> list[Any]:
    return [row for row in run.rows if kind_of(row.stage) == subject.stage]


def _series(subject: Subject, metric: str, group: Group, axis: _Axis) -> dict[str, Any]:
    """Mean and range over the seeds at every place where at least one of them has a finite value."""
    values: dict[int, list[float]] = {}
    for run in group.runs:
        # Of evaluations with the same name, as after a stage that was made longer, the last one counts.
        for x, value in dict(_points(subject, metric, run, axis)).items():
            values.setdefault(x, []).append(value * subject.scale)
    places = sorted(values)
    curve: dict[str, Any] = {"x": places, "y": [sum(values[x]) / len(values[x]) for x in places]}
    if len(group.runs) > 1:
        curve |= {"low": [min(values[x]) for x in places], "high": [max(values[x]) for x in places]}
    elif metric == "pass_at_1" and subject.stage == "eval":
        low, high = (dict(_points(subject, name, group.runs[0], axis)) for name in _INTERVAL)
        if low.keys() == high.keys() == set(places):
            curve |= {
                "low": [low[x] * subject.scale for x in places],
                "high": [high[x] * subject.scale for x in places],
            }
    return _thinned(curve)


def _points(subject: Subject, metric: str, run: RunFolder, axis: _Axis) -> Iterable[tuple[int, float]]:
    """(step, or number of the evaluation, and value) where the value is finite."""
    rows = _rows(subject, run)
    places = axis.places(run) if subject.stage == "eval" else [row.step for row in rows]
    for x, row in zip(places, rows, strict=True):
        if math.isfinite(row.values.get(metric, math.nan)):
            yield x, row.values[metric]


def _thinned(curve: dict[str, Any]) -> dict[str, Any]:
    """At most MOST_POINTS points, each the mean of as many neighbours, with five digits."""
    size = math.ceil(len(curve["x"]) / MOST_POINTS) or 1
    thin = {name: [_mean(part[i : i + size]) for i in range(0, len(part), size)] for name, part in curve.items()}
    return thin | {"x": [int(x) for x in thin["x"]]}


def _mean(values: Sequence[float]) -> float:
    return float(f"{sum(values) / len(values):.5g}")


def _names(run: RunFolder, rl: str) -> list[str]:
    """Names of the run's evaluations, with ``rl`` in place of its RL stage's own name."""
    named = [name.partition(" ") for name in evaluation_labels(run.rows)]
    return [f"{stage if stage in ('start', 'sft') else rl} {step}".strip() for stage, _, step in named]


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names, each once; what one list has between two names stays between them."""
    merged: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged
