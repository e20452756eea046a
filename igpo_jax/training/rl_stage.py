"""Reinforcement learning as a loop: rollout, scores, inner updates; it can be stopped and continued."""

import contextlib
import time
from typing import Any

import jax
import numpy as np
import optax

from igpo_jax.data import pipeline
from igpo_jax.models import llada
from igpo_jax.parallel import processes, sharding
from igpo_jax.rl import objectives, rollout
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.training import console, health, metrics, rollout_log, statistics
from igpo_jax.training import rl as rl_step
from igpo_jax.training.files import spared_when_full
from igpo_jax.training.run import Run
from igpo_jax.training.stage_state import Stage, StageResult, floats, make_optimizer
from igpo_jax.training.state import TrainState, create, merged_params, policy_of, reference_of


def run_rl(run: Run, params: llada.Params) -> StageResult:
    """IGPO (or its baseline) on the split "rl", from ``params``, which stay the reference throughout."""
    settings = run.settings.rl
    optimizer, schedule = make_optimizer(settings.optimizer, settings.updates)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 2), run.mesh)
    with contextlib.closing(Stage(run, run.settings.name, settings.steps)) as stage:
        start, state = stage.restore(state)
        for rows in (run.settings.name, f"{run.settings.name}/eval"):
            run.log.truncate(rows, start)
        rollout_log.forget(run.workdir, run.settings.name, start)
        stage.watch = _watch(run)
        loop = RlLoop(run, params, optimizer, schedule)
        progress = console.Progress(settings.steps, run.settings.name, start)
        loop.evaluate(stage, state, start)
        for step in range(start, settings.steps):
            run.judge.begin(run.settings.name, step + 1)
            with stage.saved_if_stopped(step, state):
                policy, gathered = loop.gather(state, step)
            state, values = loop.learn(state, policy, gathered, step)
            stage.add({name: values[name] for name in TABLE_MEANS} | {"steps": 1.0})
            stage.log(step + 1, values)
            stage.check_finite(values)
            progress.update(step + 1, {short: values[name] for short, name in _LINE.items() if name in values})
            stage.finish(step + 1, state)
            loop.evaluate(stage, state, step + 1)
        stage.end()
        steps = stage.sums.get("steps", 0.0)
        means = {name: stage.sums[name] / steps for name in TABLE_MEANS} if steps else {}
        return StageResult(merged_params(state), stage.elapsed(), means)


def _watch(run: Run) -> health.Monitor:
    """The watch over the stage's rows, as it stood after those already logged."""
    watch = health.Monitor(run.settings.health, run.settings.name, run.workdir)
    rows = metrics.read_metrics(run.workdir)
    watch.replay([(row.step, row.values) for row in rows if row.stage == run.settings.name])
    return watch


#: Metrics whose means over the steps are in the final table.
TABLE_MEANS = ("all_wrong_before", "all_wrong_after", "rescued_groups", "replaced_rows")
_LINE = {
    "reward": "reward",
    "pass@1": "pass_at_1",
    "all wrong": "all_wrong_before",
    "after": "all_wrong_after",
    "kl": "kl",
}


class RlLoop:
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

    def gather(self, state: TrainState, step: int) -> tuple[llada.Policy, rollout.Rollout]:
        """The first half of outer step ``step``: the policy in compute dtype, and what it samples.

        Raises:
          Stopped: the run was asked to end; ``state`` is untouched, and verdicts so far are in the journal.
        """
        run = self._run
        rows = pipeline.batch_indices(len(run.questions["rl"]), self._settings.rollout.groups, run.settings.seed, step)
        policy = self._cast(policy_of(state.trainable, state.frozen), run.model)
        gathered = rollout.collect(policy, [run.questions["rl"][row] for row in rows], step, self._context)
        # Both rounds, and the verdicts that were read back.
        gathered.stats["judge_timeouts"] = float(processes.agree_sum(np.int64(run.judge.timed_out)))
        run.judge.settle(gathered.rows.tokens, gathered.replaced)
        return policy, gathered

    def learn(
        self, state: TrainState, policy: llada.Policy, gathered: rollout.Rollout, step: int
    ) -> tuple[TrainState, dict[str, float]]:
        """The second half: scores and inner updates; nothing in it uses parameters older than the update before it."""
        run = self._run
        clock = time.perf_counter()
        batch, kept, score_values = self._scored(policy, state, gathered, step)
        score_seconds, clock = time.perf_counter() - clock, time.perf_counter()
        outcomes = []
        for _ in range(self._settings.inner_updates):
            state, outcome = self._update(state, batch)
            outcomes.append(outcome)
        values = gathered.stats | {f"{name}_seconds": spent for name, spent in gathered.seconds.items()}
        values |= _pass_at(gathered.first_correct) | score_values | floats(outcome)
        values["ratio_gap"] = _ratio_gap(outcomes[0])
        values |= {"score_seconds": score_seconds, "update_seconds": time.perf_counter() - clock}
        if self._settings.save_rollouts_every and (step + 1) % self._settings.save_rollouts_every == 0:
            with spared_when_full(f"the file of step {step + 1}'s rollouts"):
                rollout_log.save(
                    run.workdir, run.settings.name, step + 1, gathered, kept, run.tokenizer, self._settings.rewards
                )
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

    def evaluate(self, stage: Stage, state: TrainState, step: int) -> None:
        """Pass@1 on held-out questions where the schedule asks for it; logged under the stage's "/eval".

        Not after the last step: the recipe evaluates what the stage returns. What a run that ended in the middle of it
        still owes is made up for when the run goes on.

        Raises:
          Stopped: the run was asked to end; ``state`` is saved.
        """
        run, every = self._run, self._run.settings.evaluation.every
        name = f"{run.settings.name}/eval"
        if not step or not every or step % every or step == self._settings.steps or run.log.has(name, step):
            return
        run.judge.begin(f"{run.settings.name}_eval", step)
        with stage.saved_if_stopped(step, state):
            scores = run.evaluate(merged_params(state))
        stage.score(step, scores.pass_at_1)
        run.log.write(name, step, scores.metrics())


def _ratio_gap(outcome: dict[str, jax.Array]) -> float:
    """How far the mean probability ratios are from 1 at the first inner update, where old and new are the same."""
    ratios = [float(outcome[name]) for name in ("ratio", "ratio_generated", "ratio_hint") if name in outcome]
    return max((abs(ratio - 1.0) for ratio in ratios if ratio == ratio), default=0.0)


def _pass_at(correct: np.ndarray) -> dict[str, float]:
    """Unbiased pass@k of the plain samples, (N, G) bool, for k = 2, 4, 8 ... up to G."""
    group_size = correct.shape[1]
    ks = [2**i for i in range(1, group_size.bit_length()) if 2**i <= group_size]
    counts = correct.sum(axis=1).tolist()
    return {f"pass_at_{k}": statistics.mean_pass_at_k(counts, group_size, k) for k in ks}
