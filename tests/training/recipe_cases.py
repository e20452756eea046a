"""Whole runs in this process: a judge without workers, a recorder of what a run did, and a way to break it off."""

import contextlib
import dataclasses
import json
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
import pytest

from igpo_jax.parallel import sharding
from igpo_jax.training import recipe, rl_stage, sft_stage, stage_state
from igpo_jax.training.metrics import is_wall_clock, read_metrics
from igpo_jax.training.run_directory import AS_BEFORE, Resuming
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.stopping import Stop
from tests.rl.rollout_cases import RuleJudge


class Interrupted(Exception):
    """What stands for Ctrl-C, a lost machine or a full disk."""


def lucky(gold: str, text: str) -> bool:
    """Right by the look of the text, for about one text in four: an untrained model has something to learn."""
    return zlib.crc32(f"{gold}/{text}".encode()) % 4 == 0


@dataclasses.dataclass
class Rollout:
    """What the recorder kept of one rollout."""

    step: int
    policy: np.ndarray  # one weight of the policy that sampled
    out: Any


class Recorder:
    """Watches a run through the names that the stages call; breaks it off before a given step."""

    def __init__(self, patch: pytest.MonkeyPatch, sft_stops: int = -1, rl_stops: int = -1, update_stops: int = -1):
        self.sft_stops, self.rl_stops, self.update_stops = sft_stops, rl_stops, update_stops
        self.rollouts: list[Rollout] = []
        self.scored: list[tuple[bool, np.ndarray]] = []  # (has adapters, one weight) of every policy that is scored
        self.after: list[np.ndarray] = []  # one weight after every RL update
        self.results: dict[str, Any] = {}  # final parameters on the host, by stage
        self.opened: list[Any] = []
        self.sft_updates = 0
        patch.setattr(recipe.plots, "plot_run", lambda workdir: [])
        patch.setattr(rl_stage.rollout, "collect", self._collecting(rl_stage.rollout.collect))
        patch.setattr(sft_stage.sft_step, "make_sft_step", self._sft(sft_stage.sft_step.make_sft_step))
        patch.setattr(rl_stage.rl_step, "make_rl_step", self._rl(rl_stage.rl_step.make_rl_step))
        patch.setattr(rl_stage.rl_step, "make_score", self._scoring(rl_stage.rl_step.make_score))
        for stage, module in (("sft", sft_stage), ("rl", rl_stage)):
            patch.setattr(module, f"run_{stage}", self._stage(stage, getattr(module, f"run_{stage}")))
        patch.setattr(stage_state, "Checkpoints", self._opening(stage_state.Checkpoints))

    @staticmethod
    def _weight(policy: Any) -> np.ndarray:
        """What an update changes for certain: the head, or an adapter where the head is frozen."""
        if policy.adapters is not None:
            return np.array(sharding.to_host(policy.adapters.layers["q_proj"]["b"]))
        return np.array(sharding.to_host(policy.params["ff_out"]["weight"]))

    def _collecting(self, real):
        def collect(policy, questions, step, context, begun):
            if step == self.rl_stops:
                raise Interrupted
            out = real(policy, questions, step, context, begun)
            self.rollouts.append(Rollout(step, self._weight(policy), out))
            return out

        return collect

    def _sft(self, real):
        def make(*args):
            update = real(*args)

            def counted(state, batch, key):
                if int(state.step) == self.sft_stops:
                    raise Interrupted
                self.sft_updates += 1
                return update(state, batch, key)

            counted.lower = update.lower
            return counted

        return make

    def _rl(self, real):
        def make(*args):
            update = real(*args)

            def recorded(state, batch):
                if len(self.after) == self.update_stops:
                    raise Interrupted
                state, metrics = update(state, batch)
                self.after.append(self._weight(rl_stage.policy_of(state.trainable, state.frozen)))
                return state, metrics

            recorded.lower = update.lower
            return recorded

        return make

    def _scoring(self, real):
        def make(*args):
            score = real(*args)

            def recorded(policy, batch, *masks):
                self.scored.append(
                    (policy.adapters is not None, np.array(sharding.to_host(policy.params["ff_out"]["weight"])))
                )
                return score(policy, batch, *masks)

            return recorded

        return make

    def _stage(self, stage, real):
        def run(*args):
            result = real(*args)
            self.results[stage] = sharding.to_host(result.params)
            return result

        return run

    def _opening(self, real):
        def make(*args, **options):
            self.opened.append(real(*args, **options))
            return self.opened[-1]

        return make

    def die(self) -> None:
        """The end of the process: what was being written is finished, nothing else happens."""
        for checkpoints in self.opened:
            checkpoints.close()


def train(
    settings: RunSettings,
    workdir: pathlib.Path,
    resuming: Resuming = AS_BEFORE,
    judge: Any = None,
    stop: Stop | None = None,
    **stops: int,
) -> Recorder:
    """A run in ``workdir``, whole or broken off; what it did, with its summary in ``rows``."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, **stops)
        broken_off = any(step >= 0 for step in stops.values())
        with pytest.raises(Interrupted) if broken_off else contextlib.nullcontext():
            recorder.rows = recipe.train(settings, workdir, judge or RuleJudge(lucky), resuming, stop)
        if broken_off:
            recorder.die()
    return recorder


def metrics_of(workdir: pathlib.Path) -> list[tuple[str, int, dict[str, float]]]:
    """The rows of metrics.jsonl without wall-clock times, NaN as text so that rows compare."""
    return [
        (row.stage, row.step, {k: str(v) for k, v in row.values.items() if not is_wall_clock(k)})
        for row in read_metrics(workdir)
    ]


def summary_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """summary.json without wall-clock times."""
    rows = json.loads((workdir / "summary.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_bits(one: Any, other: Any) -> None:
    """Two trees of arrays are equal bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, yours in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine.view(np.int32), yours.view(np.int32))
