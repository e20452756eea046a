"""The rows that wandb and trackio get, seen through modules that record what they are told."""

import math
import sys
import types

import pytest

from igpo_jax.errors import UserError
from igpo_jax.training.metrics import MetricsLog
from igpo_jax.training.trackers import TrackerSettings, make_tracker


@pytest.fixture
def service(monkeypatch):
    """Installs a recording module under a service's name; returns its calls."""

    def install(name):
        calls = []
        module = types.ModuleType(name)
        for function in ("init", "define_metric", "log", "finish"):
            setattr(module, function, lambda *args, _name=function, **named: calls.append((_name, args, named)))
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_row_of_the_log_is_sent_once(service, tmp_path, name):
    calls = service(name)
    tracker = make_tracker(TrackerSettings(service=name, project="p"), "first", {"seed": 1}, {"igpo": 1})
    with MetricsLog(tmp_path, tensorboard=False, tracker=tracker) as log:
        log.write("sft", 5, {"loss": 2.0, "entropy_hint": math.nan})
        for step in (1, 2, 3):  # step 1 was sent before the restart
            log.write("igpo", step, {"reward": 0.5})
    sent = [args[0] for kind, args, _ in calls if kind == "log"]
    assert sent == [
        {"sft/step": 5, "sft/loss": 2.0},
        {"igpo/step": 2, "igpo/reward": 0.5},
        {"igpo/step": 3, "igpo/reward": 0.5},
    ]
    begun = calls[0][2]
    assert begun["project"] == "p" and begun["name"] == "first" and begun["resume"] == "allow"
    assert begun["config"] == {"seed": 1}
    assert calls[-1][0] == "finish"


def test_wandb_draws_each_stage_over_its_own_steps(service):
    calls = service("wandb")
    tracker = make_tracker(TrackerSettings(service="wandb"), "first", {}, {})
    tracker.write("igpo", 1, {"reward": 0.5})
    tracker.write("igpo", 2, {"reward": 0.5})
    axes = [(args, named) for kind, args, named in calls if kind == "define_metric"]
    assert axes == [(("igpo/*",), {"step_metric": "igpo/step"})]
    assert calls[0][2]["id"] == "first"


def test_none_is_the_default():
    assert make_tracker(TrackerSettings(), "first", {}, {}) is None


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"tracker\.service is trackio.*pip install trackio"):
        make_tracker(TrackerSettings(service="trackio"), "first", {}, {})


@pytest.mark.parametrize("values", [{"service": "mlflow"}, {"service": "wandb", "project": ""}])
def test_bad_settings_are_refused(values):
    with pytest.raises(UserError, match="tracker"):
        TrackerSettings(**values)
