"""Reinforcement learning as a loop: rollout, scores, inner updates; it can be stopped and continued."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from igpo_jax.data import pipeline
from igpo_jax.models import llada
from igpo_jax.parallel import processes, sharding
from igpo_jax.rl import objectives, rollout, sampling
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.rl.rollout import Question
from igpo_jax.training import console, health, metrics, rollout_log, statistics
from igpo_jax.training import rl as rl_step
from igpo_jax.training.accounting import Accounts
from igpo_jax.training.files import spared_when_full
from igpo_jax.training.run import Run
from igpo_jax.training.stage_state import Stage, StageResult, floats, make_optimizer
from igpo_jax.training.state import TrainState, create, merged_params, policy_of, reference_of, release
from igpo_jax.training.warmup import WarmUp


def run_rl(run: Run, params: llada.Params) -> StageResult:
    """IGPO (or its baseline) on the split "rl", from ``params``, which are the reference throughout.

    In full fine-tuning the reference is kept in compute dtype alone; ``params`` are gone afterwards where that is
    another one.
    """
    settings = run.settings.rl
    optimizer, schedule = make_optimizer(settings.optimizer, settings.updates)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 2), run.mesh)
    reference = params
    if state.frozen is None and run.model.dtype != jnp.float32:
        reference = jax.jit(llada.cast, static_argnums=1)(llada.Policy(params), run.model).params
        release(params)
    with contextlib.closing(Stage(run, run.settings.name, settings.steps)) as stage:
        start, state = stage.restore(state)
        for rows in (run.settings.name, f"{run.settings.name}/eval"):
            run.log.truncate(rows, start)
        rollout_log.forget(run.workdir, run.settings.name, start)
        stage.watch = _watch(run) if processes.is_main() else None
        # What was sampled ahead by older parameters is sampled again by newer ones where the run goes on.
        stage.only_on_schedule = bool(settings.stale_steps)
        loop = RlLoop(run, reference, optimizer, schedule, stage.accounts(settings.lora))
        if start < settings.steps:
            loop.warm_up(state)
        progress = console.Progress(settings.steps, run.settings.name, start)
        loop.evaluate(stage, state, start)
        for step in range(start, settings.steps):
            run.judge.begin(run.settings.name, step + 1)
            with stage.saved_if_stopped(step, state):
                run.stop.point()
                gathered = loop.gather(state, step)
                loop.sample_ahead(state, step)
                run.stop.point()
            state, values = loop.learn(state, gathered, step)
            stage.add({name: values[name] for name in TABLE_MEANS} | {"steps": 1.0})
            stage.log(step + 1, values | loop.accounts.row())
            stage.check_finite(values)
            progress.update(step + 1, {short: values[name] for short, name in _LINE.items() if name in values})
            with loop.accounts.phase("checkpoint"):
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

    def __init__(self, run: Run, reference: llada.Params, optimizer: Any, schedule: optax.Schedule, accounts: Accounts):
        settings = run.settings.rl
        self.accounts = accounts
        self._ahead: tuple[llada.Policy, list[Question], rollout.Begun] | None = None
        #: What sampled the rollout at hand, until it is scored: the updates have its memory.
        self._behaviour: llada.Policy | None = None
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
        self._masks = rl_step.make_masks(settings)
        self._score = rl_step.make_score(run.model, settings.logprob_chunk, settings.score_batches)
        self._assemble = rl_step.make_update_batch(settings.objective)
        self._update = rl_step.make_rl_step(run.model, settings, optimizer, schedule)

    def gather(self, state: TrainState, step: int) -> rollout.Rollout:
        """The first half of outer step ``step``: what the policy in compute dtype samples.

        Raises:
          Stopped: the run was asked to end; ``state`` is untouched, and verdicts so far are in the journal.
        """
        run, begun = self._run, None
        if self._ahead is None:
            policy, asked = self._policy(state), self._questions(step)
        else:
            (policy, asked, begun), self._ahead = self._ahead, None
        gathered = rollout.collect(policy, asked, step, self._context, begun)
        self.accounts.sampled(gathered.seconds, gathered.cost)
        if self._settings.stale_steps:
            gathered.stats["rollout_age"] = float(self._settings.inner_updates if begun else 0)
        # Both rounds, and the verdicts that were read back.
        gathered.stats["judge_timeouts"] = float(processes.agree_sum(np.int64(run.judge.timed_out)))
        run.judge.settle(gathered.rows.tokens, gathered.replaced)
        self._behaviour = policy
        return gathered

    def _policy(self, state: TrainState) -> llada.Policy:
        return self._cast(policy_of(state.trainable, state.frozen), self._run.model)

    def _questions(self, step: int) -> list[Question]:
        """This process's questions of a step."""
        run = self._run
        with self.accounts.phase("data"):
            groups, asked = self._settings.rollout.groups, run.questions["rl"]
            rows = pipeline.batch_indices(len(asked), groups, run.settings.seed, step)
            return [asked[row] for row in rows[processes.my_rows(groups)]]

    def sample_ahead(self, state: TrainState, step: int) -> None:
        """With stale_steps, samples the plain round of the step after ``step`` before the updates of this one.

        Not across a scheduled checkpoint: the run that goes on from there has only the parameters after the updates.

        Raises:
          Stopped: as for ``gather``.
        """
        every = self._run.settings.checkpoints.every
        if not self._settings.stale_steps or step + 1 == self._settings.steps or (every and (step + 1) % every == 0):
            return
        # A copy: the updates are given the parameters to write over, and a cast in one dtype copies nothing.
        policy = self._cast(policy_of(jax.tree.map(jnp.copy, state.trainable), state.frozen), self._run.model)
        asked = self._questions(step + 1)
        self._ahead = (policy, asked, rollout.begin(policy, asked, step + 1, self._context))

    def learn(self, state: TrainState, gathered: rollout.Rollout, step: int) -> tuple[TrainState, dict[str, float]]:
        """The second half: scores and inner updates."""
        run, settings = self._run, self._settings
        with self.accounts.phase("score"):
            policy, self._behaviour = self._behaviour, None
            assert policy is not None, "gather comes first"
            batches, kept, score_values = self._scored(policy, state, gathered, step)
            del policy
        with self.accounts.phase("update"):
            outcomes = []
            for update in range(settings.inner_updates):
                state, outcome = self._update(state, batches[update % len(batches)])
                outcomes.append(outcome)
            updated = floats(outcome)
        self.accounts.updated(settings.inner_updates * settings.rollout.rows)
        values = gathered.stats | _pass_at(processes.gather_rows(gathered.first_correct)) | score_values | updated
        if not gathered.stats.get("rollout_age"):
            values["ratio_gap"] = _ratio_gap(outcomes[0])
        if self._settings.save_rollouts_every and (step + 1) % self._settings.save_rollouts_every == 0:
            with spared_when_full(f"the file of step {step + 1}'s rollouts"):
                rollout_log.save(
                    run.workdir, run.settings.name, step + 1, gathered, kept, run.tokenizer, self._settings.rewards
                )
        return state, values

    def _scored(
        self, policy: llada.Policy, state: TrainState, gathered: rollout.Rollout, step: int
    ) -> tuple[list[UpdateBatch], np.ndarray, dict[str, float]]:
        """One update batch for each draw of masks, the tokens that any of them learns from, and metrics."""
        settings, values = self._settings, {}
        batches = self._update_batches(policy, state, gathered.batch, step, settings.mask_draws)
        if settings.hint_gap_every and step % settings.hint_gap_every == 0:
            values["hint_logp_gap"] = rl_step.hint_gap(self._score, policy, batches[0])
        kept = np.any([sharding.local_rows(batch.kept) for batch in batches], axis=0)
        return batches, kept, values

    def _update_batches(
        self, policy: llada.Policy, state: TrainState, rows: RolloutBatch, step: int, draws: int
    ) -> list[UpdateBatch]:
        """The rollout with what the behaviour and the reference pass add, for each of the first ``draws`` of masks.

        Args:
          policy: sampled the rollout.
          state: leads to the reference.
          rows: this process's rows, on the host.
          step: the outer step, which keys the masks.
          draws: scoring passes of each policy.
        """
        settings, run = self._settings, self._run
        # Under LoRA the policy's own base is the reference: no second copy of it.
        reference = llada.Policy(params=policy.params)
        if state.frozen is None:
            reference = self._cast(reference_of(state, self._start), run.model)
        kl_weight = objectives.kl_weight(rows.rewards, settings.rollout.group_size, settings.objective)
        device, weight = sharding.shard_batch((rows, kl_weight), run.mesh)
        batches = []
        for draw in range(draws):
            masks = self._masks(run.key, step, draw, device)
            old, ref = (self._score(scorer, device, masks.completion, masks.prompt) for scorer in (policy, reference))
            batches.append(self._assemble(device, old, ref, weight, masks if settings.redraws else None))
        return batches

    def warm_up(self, state: TrainState) -> None:
        """Compiles sampling in all sizes, scoring and the update before the first batch."""
        run = self._run
        if not run.settings.warm_up:
            return
        context, warm = self._context.sampling, WarmUp(run.settings.name)
        with self.accounts.phase("rollout"):
            policy = self._policy(state)
            sizes = ", ".join(str(size) for size in context.sizes)
            warm.run(f"sampling of {sizes} rows", lambda: sampling.warm_up(policy, run.settings.prompt_length, context))
        with self.accounts.phase("score"):
            nothing = _nothing(run)
            batches = warm.run("scoring", lambda: self._update_batches(policy, state, nothing, 0, 1))
        with self.accounts.phase("update"):
            warm.compile("the update", lambda: self._update.lower(state, batches[0]))
        warm.note()

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
        with stage.saved_if_stopped(step, state), self.accounts.phase("evaluate"):
            scores = run.evaluate(merged_params(state))
        stage.score(step, scores.pass_at_1)
        run.log.write(name, step, scores.metrics())


def _nothing(run: Run) -> RolloutBatch:
    """A rollout of the run's shape without a token in it: this process's rows."""
    rollout_settings, length = run.settings.rl.rollout, run.settings.sampler.length
    mine = processes.my_rows(rollout_settings.rows)
    rows = mine.stop - mine.start
    prompt = np.zeros((rows, run.settings.prompt_length), np.int32)
    tokens = np.full((rows, length), run.model.config.eos_token_id, np.int32)
    flags, numbers = np.zeros((rows, length), bool), np.zeros(rows, np.float32)
    group_id = np.arange(rows, dtype=np.int32) // rollout_settings.group_size
    return RolloutBatch(prompt, prompt == 0, tokens, ~flags, flags, numbers, numbers > 0, numbers, group_id)


def _ratio_gap(outcome: dict[str, jax.Array]) -> float:
    """How far the mean probability ratios are from 1 at the first inner update, where old and new are the same."""
    ratios = [float(outcome[name]) for name in ("ratio", "ratio_generated", "ratio_hint") if name in outcome]
    return max((abs(ratio - 1.0) for ratio in ratios if ratio == ratio), default=0.0)


def _pass_at(correct: np.ndarray) -> dict[str, float]:
    """Unbiased pass@k of the plain samples, (N, G) bool, for k = 5 and 2, 4, 8 ... up to G."""
    group_size = correct.shape[1]
    ks = sorted(k for k in {5, *(2**i for i in range(1, group_size.bit_length()))} if k <= group_size)
    counts = correct.sum(axis=1).tolist()
    return {f"pass_at_{k}": statistics.mean_pass_at_k(counts, group_size, k) for k in ks}
