"""Runs side by side: those that differ in their seed alone are one group; what groups differ in is listed."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from igpo_jax import settings
from igpo_jax.reporting.runs import RunFolder
from igpo_jax.training.metrics import is_wall_clock
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.subjects import kind_of

#: Where a computation ran, how it was cut up and what was kept says nothing about what was learnt.
_LAYOUT = ("mesh.", "checkpoints.", "cpu_devices", "judge.workers")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one configuration, a seed each."""

    label: str
    runs: tuple[RunFolder, ...]


def group_runs(runs: Sequence[RunFolder]) -> list[Group]:
    """Groups runs whose configurations are equal but for the seed, in the order of their first runs.

    Runs with equal seeds stay apart: two of them are no seeds of one experiment. So do runs without a config.json.
    """
    groups: list[list[RunFolder]] = []
    for run in runs:
        home = next((group for group in groups if _belongs(run, group)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    return [Group(_label(group), tuple(group)) for group in groups]


def _belongs(run: RunFolder, group: Sequence[RunFolder]) -> bool:
    if not run.config or not group[0].config or run.seed in {other.seed for other in group}:
        return False
    return all(path == "seed" for path in _changed(group[0], run))


def _changed(one: RunFolder, other: RunFolder) -> list[str]:
    """Fields in which two configurations differ, the layout aside.

    A field that one of them lacks, because an older version wrote it, counts as its default.
    """
    changes = settings.changed_fields(one.config, other.config)
    return [
        path
        for path, *values in changes
        if not path.startswith(_LAYOUT) and {str(v) for v in values} != {settings.ABSENT, str(_default(path))}
    ]


@functools.cache
def _defaults() -> dict[str, Any]:
    # As they look after a way through JSON, where tuples are lists.
    return json.loads(settings.to_json(RunSettings()))


def _default(path: str) -> Any:
    return value_at(_defaults(), path)


def _label(runs: Sequence[RunFolder]) -> str:
    return runs[0].label if len(runs) == 1 else f"{runs[0].label} ({len(runs)} seeds)"


def different_settings(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """(field, its value in every group) for each field that is not the same in all; seeds only among single runs."""
    firsts = [group.runs[0] for group in groups]
    if not all(run.config for run in firsts):
        return []
    paths = dict.fromkeys(path for run in firsts[1:] for path in _changed(firsts[0], run))
    if any(len(group.runs) > 1 for group in groups):
        paths.pop("seed", None)
    return [(path, [value_at(run.config, path) for run in firsts]) for path in paths]


def value_at(config: Any, path: str) -> Any:
    """What stands at a dotted path of nested dicts, ``settings.ABSENT`` where nothing does."""
    for name in path.split("."):
        if not isinstance(config, dict) or name not in config:
            return settings.ABSENT
        config = config[name]
    return config


def missing_metrics(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Run label -> the metrics that another run has and this one lacks, in the kinds of stages that both have."""
    kinds = [_names_by_kind(run) for run in runs]
    missing = {}
    for run, mine in zip(runs, kinds, strict=True):
        lacking: dict[str, None] = {}
        for other in kinds:
            for kind in mine.keys() & other.keys():
                lacking |= dict.fromkeys(name for name in other[kind] if name not in mine[kind])
        if lacking:
            missing[run.label] = sorted(lacking)
    return missing


def _names_by_kind(run: RunFolder) -> dict[str, set[str]]:
    """Metrics logged under SFT, RL and evaluation; clocks differ between machines and are left out."""
    kinds: dict[str, set[str]] = {}
    for row in run.rows:
        kinds.setdefault(kind_of(row.stage), set()).update(name for name in row.values if not is_wall_clock(name))
    return kinds
