"""The policy update: what is hidden, behaviour and reference scores, then mu inner updates of the objective."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from igpo_jax.diffusion import likelihood, noise
from igpo_jax.diffusion.estimators import ESTIMATORS, Masks
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models import llada
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel import sharding
from igpo_jax.rl import objectives
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.objectives import Objective
from igpo_jax.rl.rollout import RewardSettings, RolloutSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.state import CompiledUpdate, TrainState, compile_update
from igpo_jax.training.update import descend


@dataclasses.dataclass(frozen=True)
class RlSettings:
    """IGPO; the defaults are the paper's and, where it is silent, the released code's."""

    steps: int = 360  #: outer steps (rollouts); 0 skips the stage
    inner_updates: int = 4  #: mu, updates per rollout
    micro_batches: int = 1  #: parts that gradients are accumulated over
    estimator: str = "mean_field"  #: how log-probs of a completion are estimated
    score_batches: int = 1  #: parts that the behaviour and reference passes are cut into
    logprob_chunk: int = 64  #: completion positions projected onto the vocabulary at a time
    stale_steps: int = 0  #: updates that a rollout's parameters may lag: 1 samples the next rollout before this update
    hint_gap_every: int = 1  #: outer steps between two scoring passes with hints in view (one metric); 0 = never
    save_rollouts_every: int = 10  #: outer steps between two files of saved rollouts; 0 saves none
    rollout: RolloutSettings = RolloutSettings()  #: groups, second round, replacement
    hints: HintSettings = HintSettings()  #: what is shown of the ground truth
    rewards: RewardSettings = RewardSettings()  #: what a completion earns
    objective: Objective = Objective()  #: ratio, clip, KL, filter, normalisation
    lora: LoraSettings = LoraSettings()  #: rank 0 trains every parameter
    optimizer: OptimizerSettings = OptimizerSettings()  #: AdamW and its schedule, counted in updates

    def __post_init__(self) -> None:
        """Raises UserError for an unknown estimator and counts that do not divide."""
        check_choice("rl.estimator", self.estimator, ESTIMATORS)
        if self.steps < 0 or self.inner_updates < 1 or self.micro_batches < 1 or self.score_batches < 1:
            raise UserError("steps must be at least 0; inner_updates, micro_batches and score_batches at least 1")
        if self.logprob_chunk < 1:
            raise UserError(f"rl.logprob_chunk is {self.logprob_chunk}, expected at least 1 completion position")
        for name in ("hint_gap_every", "save_rollouts_every"):
            if getattr(self, name) < 0:
                raise UserError(f"rl.{name} is {getattr(self, name)}, expected 0 (never) or a number of outer steps")
        if self.stale_steps not in (0, 1):
            raise UserError(f"rl.stale_steps is {self.stale_steps}, expected 0 or 1 outer steps")
        for name in ("micro_batches", "score_batches"):
            if self.rollout.rows % getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)}, which does not divide the {self.rollout.rows} rows of a rollout"
                )

    @property
    def updates(self) -> int:
        """Updates in the whole stage, outer steps x inner updates."""
        return self.steps * self.inner_updates

    @property
    def redraws(self) -> bool:
        """Whether the estimator draws new masks for every inner update."""
        return ESTIMATORS[self.estimator].redraws

    @property
    def mask_draws(self) -> int:
        """Scoring passes of each policy in an outer step."""
        return self.inner_updates if self.redraws else 1


def make_masks(settings: RlSettings) -> Callable[..., Masks]:
    """The jitted draw of masks: (key of the run, outer step, inner update, rollout) -> Masks of its B rows.

    Keyed by (step, global row, inner update): the same on any mesh, and after a resume.
    """

    def draw(key: jax.Array, step: jax.Array, update: jax.Array, batch: RolloutBatch) -> Masks:
        rows, length = batch.completion_tokens.shape
        keys = noise.row_keys(key, "likelihood", step, sharding.constrain(jnp.arange(rows), ("batch",)))
        estimator = ESTIMATORS[settings.estimator]
        masks = estimator.masks(keys, update, settings.inner_updates, batch.prompt_tokens.shape[1], length)
        return jax.tree.map(lambda mask: sharding.constrain(mask, ("batch", None)), masks)

    return jax.jit(draw)


def make_score(model: llada.Model, chunk: int, parts: int) -> Callable[..., likelihood.Scores]:
    """The jitted scoring pass: (policy, rollout, masked (B, C), prompt_masked (B, P) or none) -> Scores of (B, C).

    It runs in ``parts`` parts.
    """

    def one(policy: llada.Policy, part: tuple[RolloutBatch, jax.Array, jax.Array | None]) -> likelihood.Scores:
        batch, masked, prompt_masked = part
        row = (batch.prompt_tokens, batch.prompt_mask, batch.completion_tokens)
        return likelihood.score(policy, model, *row, masked, prompt_masked=prompt_masked, chunk=chunk)

    def score(
        policy: llada.Policy, batch: RolloutBatch, masked: jax.Array, prompt_masked: jax.Array | None = None
    ) -> likelihood.Scores:
        if parts == 1:
            return one(policy, (batch, masked, prompt_masked))
        split = sharding.micro_batches((batch, masked, prompt_masked), parts)
        scores = jax.lax.map(functools.partial(one, policy), split)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), scores)

    return jax.jit(score)


def make_rl_step(
    model: llada.Model, settings: RlSettings, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> CompiledUpdate:
    """The jitted inner update: (state, batch) -> (new state, metrics); the state is donated (see compile_update)."""

    def loss(policy: llada.Policy, part: UpdateBatch) -> objectives.LossSums:
        rollout, masks = part.rollout, part.masks or Masks(jnp.ones_like(part.rollout.hint_mask))
        row = (rollout.prompt_tokens, rollout.prompt_mask, rollout.completion_tokens, masks.completion)
        scores = likelihood.score(policy, model, *row, prompt_masked=masks.prompt, chunk=settings.logprob_chunk)
        return objectives.policy_loss(scores, part, settings.objective)

    def step(state: TrainState, batch: UpdateBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        return descend(state, loss, batch, optimizer, schedule, settings.micro_batches)

    return compile_update(step)


def make_update_batch(objective: Objective) -> Callable[..., UpdateBatch]:
    """The jitted assembly of what an inner update is given: log-probs, filter, KL weights, masks where they vary."""

    def assemble(
        batch: RolloutBatch,
        old: likelihood.Scores,
        ref: likelihood.Scores,
        kl_weight: jax.Array,
        masks: Masks | None = None,
    ) -> UpdateBatch:
        kept = objectives.kept_tokens(old.entropy, batch.hint_mask, batch.completion_mask, objective, masks)
        return UpdateBatch(batch, old_logp=old.logp, ref_logp=ref.logp, kept=kept, kl_weight=kl_weight, masks=masks)

    return jax.jit(assemble)


def hint_gap(score: Callable, policy: llada.Policy, batch: UpdateBatch) -> float:
    """How much likelier the same generated tokens are with their hints in view than without (nats per token).

    The prompt is in view in both cases, whatever the estimator hides of it.

    Args:
      score: the jitted scoring pass.
      policy: the behaviour policy.
      batch: what the first inner update is given, on the mesh.

    Returns:
      Mean difference over generated tokens (up to the first EOS) of hinted rows; nan when no row holds hints.
    """
    rollout, masks = batch.rollout, batch.masks
    hint = sharding.to_host(rollout.hint_mask)
    slots = ~hint & sharding.to_host(rollout.completion_mask) & hint.any(axis=1, keepdims=True)
    if not slots.any():
        return float("nan")
    # Zeros and not None where the estimator hides prompts: the program that scored is then the one at hand.
    prompt_masked = None if masks is None or masks.prompt is None else jnp.zeros_like(masks.prompt)
    without = batch.old_logp
    if masks is not None:
        without = score(policy, rollout, jnp.ones_like(rollout.hint_mask), prompt_masked).logp
    with_hints = score(policy, rollout, ~rollout.hint_mask, prompt_masked).logp
    return float((sharding.to_host(with_hints) - sharding.to_host(without))[slots].mean())
