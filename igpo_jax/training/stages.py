"""The two training stages as loops: data in, updates, metrics, checkpoints; each can be stopped and continued."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np
import optax

from igpo_jax.data import pipeline
from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.rl import objectives, rollout
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.training import console, optimizers, rollout_log, statistics
from igpo_jax.training import rl as rl_step
from igpo_jax.training import sft as sft_step
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.run import Run
from igpo_jax.training.state import TrainState, create, merged_params, policy_of, reference_of


@dataclasses.dataclass
class StageResult:
    """What a stage leaves: plain parameters, and what the final table says about it."""

    params: llada.Params
    seconds: float
    means: dict[str, float]


class _Saved:
    """A stage's state on disk: continued from where it was, saved on schedule, frozen parameters left out."""

    def __init__(self, run: Run, name: str, total: int):
        self._checkpoints = Checkpoints(run.workdir / "checkpoints" / name, run.settings.checkpoints)
        self._name, self._total = name, total
        self._started = time.perf_counter()
        self.seconds = 0.0
        self.sums: dict[str, float] = {}

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The step and state to go on from: the newest good checkpoint, or ``state`` itself."""
        found = self._checkpoints.restore(_abstract(dataclasses.replace(state, frozen=None)))
        if found is None:
            return 0, state
        step, restored, extra = found
        done = "finished already" if step == self._total else f"going on from step {step} of {self._total}"
        console.note(f"{self._name}: {done}")
        self.seconds, self.sums = extra["seconds"], extra["sums"]
        return step, dataclasses.replace(restored, frozen=state.frozen)

    def add(self, values: dict[str, float]) -> None:
        """Adds to the sums that the final table's means are made of."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def elapsed(self) -> float:
        """Seconds spent in this stage, restarts included."""
        return self.seconds + time.perf_counter() - self._started

    def save(self, step: int, state: TrainState, metric: float | None) -> None:
        """Saves where the schedule says so, and at the last step."""
        extra = {"seconds": self.elapsed(), "sums": self.sums}
        self._checkpoints.save(step, dataclasses.replace(state, frozen=None), extra, metric, force=step == self._total)

    def close(self) -> None:
        """Waits for what is still being written, also when the stage is broken off."""
        self._checkpoints.close()


def _abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _optimizer(settings: optimizers.OptimizerSettings, updates: int) -> tuple[Any, optax.Schedule]:
    return optimizers.make_optimizer(settings, updates), optimizers.make_schedule(settings, updates)


def run_sft(run: Run, params: llada.Params) -> StageResult:
    """Supervised fine-tuning on the split "sft", from ``params``.

    The batch of a step is a function of the seed and the step, so the step number is the whole state of the data.
    """
    settings, encoded = run.settings.sft, run.encoded["sft"]
    optimizer, schedule = _optimizer(settings.optimizer, settings.steps)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 1), run.mesh)
    with contextlib.closing(_Saved(run, "sft", settings.steps)) as saved:
        start, state = saved.restore(state)
        run.log.truncate("sft", start)
        update = sft_step.make_sft_step(run.model, settings, optimizer, schedule)
        progress = console.Progress(settings.steps, "sft", start)
        for step in range(start, settings.steps):
            rows = pipeline.batch_indices(len(encoded), settings.batch_size, run.settings.seed, step)
            batch = sft_step.SftBatch(
                encoded.prompt_tokens[rows],
                encoded.prompt_mask[rows],
                encoded.completion_tokens[rows],
                np.arange(len(rows), dtype=np.int32),
            )
            state, metrics = update(state, sharding.shard_batch(batch, run.mesh), run.key)
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                values = _floats(metrics)
                run.log.write("sft", step + 1, values)
                progress.update(step + 1, {"loss": values["loss"], "lr": values["learning_rate"]})
            saved.save(step + 1, state, None)
        return StageResult(merged_params(state), saved.elapsed(), {})


def run_rl(run: Run, params: llada.Params) -> StageResult:
    """IGPO (or its baseline) on the split "rl", from ``params``, which stay the reference throughout."""
    settings = run.settings.rl
    optimizer, schedule = _optimizer(settings.optimizer, settings.updates)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 2), run.mesh)
    with contextlib.closing(_Saved(run, run.settings.name, settings.steps)) as saved:
        start, state = saved.restore(state)
        for rows in (run.settings.name, f"{run.settings.name}/eval"):
            run.log.truncate(rows, start)
        loop = _RlLoop(run, params, optimizer, schedule)
        progress = console.Progress(settings.steps, run.settings.name, start)
        for step in range(start, settings.steps):
            state, values = loop.step(state, step)
            saved.add({name: values[name] for name in _TABLE_MEANS} | {"steps": 1.0})
            score = loop.evaluate(state, step + 1)
            run.log.write(run.settings.name, step + 1, values)
            progress.update(step + 1, {short: values[name] for short, name in _LINE.items() if name in values})
            saved.save(step + 1, state, score)
        steps = saved.sums.get("steps", 0.0)
        means = {name: saved.sums[name] / steps for name in _TABLE_MEANS} if steps else {}
        return StageResult(merged_params(state), saved.elapsed(), means)


_TABLE_MEANS = ("all_wrong_before", "all_wrong_after", "rescued_groups", "replaced_rows")
_LINE = {
    "reward": "reward",
    "pass@1": "pass_at_1",
    "all wrong": "all_wrong_before",
    "after": "all_wrong_after",
    "kl": "kl",
}


class _RlLoop:
    """One outer step: rollout, scoring, mu inner updates."""

    def __init__(self, run: Run, reference: llada.Params, optimizer: Any, schedule: optax.Schedule):
        settings = run.settings.rl
        self._run, self._settings, self._start = run, settings, reference
        self._context = rollout.RolloutContext(
            run.sampler_context(run.settings.sampler.temperature, settings.rollout.rows_per_program),
            settings.rollout,
            settings.hints,
            settings.rewards,
            run.tokenizer,
            run.judge,
        )
        self._cast = jax.jit(llada.cast, static_argnums=1)
        self._score = rl_step.make_score(run.model, settings.logprob_chunk, settings.score_batches)
        self._assemble = rl_step.make_update_batch(settings.objective)
        self._update = rl_step.make_rl_step(run.model, settings, optimizer, schedule)

    def step(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """Runs outer step ``step``; nothing in it uses parameters older than the update before it."""
        run = self._run
        rows = pipeline.batch_indices(len(run.questions["rl"]), self._settings.rollout.groups, run.settings.seed, step)
        policy = self._cast(policy_of(state.trainable, state.frozen), run.model)
        gathered = rollout.collect(policy, [run.questions["rl"][row] for row in rows], step, self._context)
        clock = time.perf_counter()
        batch, kept, score_values = self._scored(policy, state, gathered, step)
        score_seconds, clock = time.perf_counter() - clock, time.perf_counter()
        for _ in range(self._settings.inner_updates):
            state, metrics = self._update(state, batch)
        values = gathered.stats | _pass_at(gathered.first_correct) | score_values | _floats(metrics)
        values |= {"score_seconds": score_seconds, "update_seconds": time.perf_counter() - clock}
        if self._settings.save_rollouts_every and (step + 1) % self._settings.save_rollouts_every == 0:
            rollout_log.save(run.workdir, run.settings.name, step + 1, gathered, kept, run.tokenizer)
        return state, values

    def _scored(
        self, policy: llada.Policy, state: TrainState, gathered: rollout.Rollout, step: int
    ) -> tuple[UpdateBatch, np.ndarray, dict[str, float]]:
        """The behaviour and the reference pass, once for all inner updates, and the entropy filter."""
        objective = self._settings.objective
        device: RolloutBatch = sharding.shard_batch(gathered.batch, self._run.mesh)
        masked = rl_step.ESTIMATORS[self._settings.estimator].masked(device.hint_mask.shape, device.hint_mask)
        old = self._score(policy, device, masked)
        reference = self._cast(reference_of(state, self._start), self._run.model)
        ref = self._score(reference, device, masked)
        weight = objectives.kl_weight(gathered.batch.rewards, self._settings.rollout.group_size, objective)
        batch = self._assemble(device, old, ref, sharding.shard_batch(weight, self._run.mesh))
        kept = sharding.to_host(batch.kept)
        values = {}
        if self._settings.hint_gap_every and step % self._settings.hint_gap_every == 0:
            values["hint_logp_gap"] = rl_step.hint_gap(self._score, policy, device, sharding.to_host(old.logp))
        return batch, kept, values

    def evaluate(self, state: TrainState, step: int) -> float | None:
        """Pass@1 on held-out questions where the schedule asks for it; logged under the stage's "/eval".

        Not after the last step: the recipe evaluates what the stage returns.
        """
        every = self._run.settings.evaluation.every
        if not every or step % every or step == self._settings.steps:
            return None
        scores = self._run.evaluate(merged_params(state))
        self._run.log.write(f"{self._run.settings.name}/eval", step, scores.metrics())
        return scores.pass_at_1


def _pass_at(correct: np.ndarray) -> dict[str, float]:
    """Unbiased pass@k of the plain samples, (N, G) bool, for k = 2, 4, 8 ... up to G."""
    group_size = correct.shape[1]
    ks = [2**i for i in range(1, group_size.bit_length()) if 2**i <= group_size]
    counts = correct.sum(axis=1).tolist()
    return {f"pass_at_{k}": statistics.mean_pass_at_k(counts, group_size, k) for k in ks}


def _floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
