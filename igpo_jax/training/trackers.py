"""Experiment trackers of others: the same rows as in metrics.jsonl, sent to wandb or trackio when asked for."""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, Protocol

from igpo_jax.errors import UserError, check_choice

SERVICES = ("none", "wandb", "trackio")


@dataclasses.dataclass(frozen=True)
class TrackerSettings:
    """Which service gets the metrics besides the run folder."""

    service: str = "none"  #: none, wandb or trackio (extras of the same names)
    project: str = "igpo_jax"  #: project of the service that the run appears in
    run_name: str = ""  #: name of the run there; empty takes the run folder's name

    def __post_init__(self) -> None:
        """Raises UserError for an unknown service or an empty project."""
        check_choice("tracker.service", self.service, SERVICES)
        if self.service != "none" and not self.project:
            raise UserError("tracker.project is empty; name the project that the run appears in")


class Tracker(Protocol):
    """Where rows go besides the run folder."""

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Sends one row."""

    def close(self) -> None:
        """Waits until everything is sent."""


class _Service:
    """wandb, and trackio, which has the same calls. Each stage has a step of its own as its axis."""

    def __init__(self, module: Any, settings: TrackerSettings, name: str, config: dict[str, Any], last: dict[str, int]):
        self._module, self._last = module, last
        # trackio continues a run by its name, wandb by its id.
        identity = {"id": name} if settings.service == "wandb" else {}
        module.init(project=settings.project, name=name, config=config, resume="allow", **identity)
        self._axes: set[str] = set()
        self._own_axes = settings.service == "wandb"

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if step <= self._last.get(stage, -1):
            return  # sent before a restart; a step that is computed again gives the same values
        self._last[stage] = step
        axis = f"{stage}/step"
        if self._own_axes and stage not in self._axes:
            self._module.define_metric(f"{stage}/*", step_metric=axis)
            self._axes.add(stage)
        finite = {f"{stage}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._module.log({axis: step, **finite})

    def close(self) -> None:
        self._module.finish()


def make_tracker(
    settings: TrackerSettings, run_name: str, config: Mapping[str, Any], last: Mapping[str, int]
) -> Tracker | None:
    """The tracker that the settings ask for; None for none.

    Args:
      settings: service and project.
      run_name: name of the run there where the settings have none; a run of that name is continued.
      config: the run's settings, stored with it.
      last: the last step of each stage that an earlier start has sent.

    Raises:
      UserError: the service's package is not installed.
    """
    if settings.service == "none":
        return None
    try:
        module = importlib.import_module(settings.service)
    except ImportError as error:
        raise UserError(
            f"tracker.service is {settings.service}, whose package cannot be loaded ({error}); "
            f"run: pip install {settings.service}"
        ) from error
    return _Service(module, settings, settings.run_name or run_name, dict(config), dict(last))
