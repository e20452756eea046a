"""The folder of a run as a report reads it: what is there is used, what is damaged is named in one sentence."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.training import metrics, rollout_log
from igpo_jax.training.metrics import Row

#: Stages that come before any RL, in the order of the recipe.
_FIRST = ("start", "sft")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """One run: what it logged, and what could not be read."""

    path: pathlib.Path
    label: str  # short and unlike that of any other run of the report
    config: dict[str, Any]  # config.json, empty where there is none
    facts: dict[str, Any]  # environment.json, empty where there is none
    rows: list[Row]
    evaluations: list[dict[str, Any]]  # one a stage, in the order of the recipe
    rollouts: list[pathlib.Path]
    health: list[dict[str, Any]]  # events, in the order in which they were logged
    remarks: list[str]

    @property
    def seed(self) -> int | None:
        """The seed of the configuration, None where it names none."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None


def open_runs(places: Sequence[str | os.PathLike[str]]) -> list[RunFolder]:
    """Opens the folders of a report.

    Raises:
      UserError: a place is not the folder of a run, is named twice, or nothing was logged there yet.
    """
    paths = [pathlib.Path(place) for place in places]
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise UserError(f"{paths[place]} is named twice; name each run once")
    return [_open(path, label) for path, label in zip(paths, _labels(resolved), strict=True)]


def _labels(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _open(path: pathlib.Path, label: str) -> RunFolder:
    _check(path)
    remarks: list[str] = []
    rows, damaged, lines = metrics.scan_metrics(path)
    rollouts = sorted((path / rollout_log.FOLDER).glob("*.jsonl"))
    if not rows and not rollouts:
        raise UserError(f"{path / metrics.FILE} has no row that can be read; wait for the run's first logged step")
    for number in damaged:
        where = "it was cut while it was written" if number == lines else "the lines around it are used"
        remarks.append(f"{path / metrics.FILE} line {number} is not a whole row and is left out ({where})")
    return RunFolder(
        path=path,
        label=label,
        config=_object(path / "config.json", remarks),
        facts=_object(path / "environment.json", remarks),
        rows=rows,
        evaluations=_evaluations(path, remarks),
        rollouts=rollouts,
        health=_events(path / "health.jsonl", remarks),
        remarks=remarks,
    )


def _check(path: pathlib.Path) -> None:
    """Raises UserError where ``path`` is not the folder of a run."""
    expected = "expected the folder that --workdir of igpo_jax.train named"
    if not path.exists():
        raise UserError(f"{path} does not exist; {expected}")
    if not path.is_dir():
        raise UserError(f"{path} is a file; {expected}")
    if not (path / metrics.FILE).exists():
        runs = sorted(found.parent.name for found in path.glob(f"*/{metrics.FILE}"))
        hint = f"; did you mean one of the runs in it: {', '.join(runs[:6])}?" if runs else ""
        raise UserError(f"{path} has no {metrics.FILE}, so it is not the folder of a run; {expected}{hint}")


def _object(path: pathlib.Path, remarks: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is none; a damaged file gets a remark."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
        problem = f"holds {type(found).__name__} instead of an object"
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read ({error})"
    remarks.append(f"{path} {problem}; the report goes on without it")
    return {}


def _evaluations(path: pathlib.Path, remarks: list[str]) -> list[dict[str, Any]]:
    """One row a stage, from evaluations/STAGE.json."""
    found = {file.stem: _object(file, remarks) for file in sorted((path / "evaluations").glob("*.json"))}
    numbers = {stage: _numbers(row) for stage, row in found.items()}
    usable = {stage: row for stage, row in numbers.items() if "pass_at_1" in row}
    for stage in found:
        if stage not in usable and found[stage]:
            remarks.append(
                f"{path / 'evaluations' / stage}.json has no number pass_at_1; the stage table is without it"
            )
    order = [stage for stage in _FIRST if stage in usable] + [stage for stage in usable if stage not in _FIRST]
    return [usable[stage] | {"stage": stage} for stage in order]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers of a row: all that a table shows."""
    return {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


def _events(path: pathlib.Path, remarks: list[str]) -> list[dict[str, Any]]:
    """Health events; damaged lines are named and left out."""
    events = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event["stage"], str) or not isinstance(event["step"], int):
                raise ValueError("stage or step is of the wrong type")
            events.append({name: event[name] for name in ("stage", "step", "signature", "advice")})
        except (ValueError, KeyError, TypeError, RecursionError):
            remarks.append(f"{path} line {number} is not a whole event and is left out")
    return events
