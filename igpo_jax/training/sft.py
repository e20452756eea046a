"""Supervised fine-tuning with LLaDA's objective: one jitted step."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from igpo_jax.data.buckets import PADDINGS
from igpo_jax.diffusion import likelihood, masking, noise
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models import llada
from igpo_jax.models.lora import LoraSettings
from igpo_jax.rl.batch import Array
from igpo_jax.rl.objectives import LossSums
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.state import CompiledUpdate, TrainState, compile_update
from igpo_jax.training.update import descend

#: Rule for a trace that does not fit -> the name that ``data.pipeline.encode_examples`` has for it.
LONG_COMPLETIONS = {"drop": "drop", "cut": "keep", "error": "error"}

_LEAST = {
    "steps": 0,
    "epochs": 0,
    "batch_size": 1,
    "micro_batches": 1,
    "length_buckets": 1,
    "logprob_chunk": 1,
    "log_every": 1,
}


@dataclasses.dataclass(frozen=True)
class SftSettings:
    """Length-aligned supervised fine-tuning; batch and schedule are the paper's, Adam's numbers those of RL."""

    steps: int = 1000  #: updates; 0 skips the stage
    epochs: float = 0.0  #: passes over the rows, which then decide the steps; 0 = ``steps`` does
    batch_size: int = 2048  #: rows per update (4 a device x 8 accumulated x 64 devices)
    micro_batches: int = 1  #: parts that gradients are accumulated over
    minimum_mask: float = 1e-3  #: eps of the forward process: p = (1 - eps) t + eps
    completion_length: int = 0  #: tokens of a completion, EOS included; 0 = the sampler's length
    long_completions: str = "drop"  #: a trace that does not fit: drop it, cut it at the end (both counted), or error
    length_buckets: int = 1  #: array shapes at most, each for rows of like length; 1 = one shape for all
    padding: str = "canvas"  #: EOS after a completion, all learnt: up to the canvas, or to the width of its "batch"
    logprob_chunk: int = 64  #: completion positions projected onto the vocabulary at a time
    log_every: int = 10  #: steps between two rows of metrics
    lora: LoraSettings = LoraSettings()  #: rank 0 trains every parameter
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=5e-6, schedule="wsd", warmup_steps=200, final_learning_rate=1e-6
    )  #: AdamW and its schedule

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range, counts that do not divide, and an unknown rule."""
        check_choice("sft.long_completions", self.long_completions, LONG_COMPLETIONS)
        check_choice("sft.padding", self.padding, PADDINGS)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"sft.{name} is {getattr(self, name)}, expected at least {least}")
        if not 0 < self.minimum_mask < 1:
            raise UserError(
                f"sft.minimum_mask is {self.minimum_mask}, expected a share above 0 and below 1, e.g. 0.001"
            )
        if self.completion_length < 0:
            raise UserError(
                f"sft.completion_length is {self.completion_length}, expected a number of tokens, or 0 for the "
                "sampler's length"
            )
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"micro_batches is {self.micro_batches}, which does not divide batch_size {self.batch_size}"
            )


@flax.struct.dataclass
class SftBatch:
    """B prompts with their completions, padded with EOS, which is trained on like any other token."""

    prompt_tokens: Array  # (B, P) int32
    prompt_mask: Array  # (B, P) bool
    completion_tokens: Array  # (B, C) int32
    row_ids: Array  # (B,) int32, place in the global batch; keys the noise


def sft_sums(
    policy: llada.Policy, model: llada.Model, batch: SftBatch, masked: Array, probability: Array, chunk: int
) -> LossSums:
    """Sums of LLaDA's SFT loss: CE / p over masked completion tokens, divided by the row's answer length.

    The formula of LLaDA's GUIDELINES.md (section on SFT): padding EOS counts in the answer length.

    Args:
      policy: parameters.
      model: configuration and compute settings.
      batch: B rows.
      masked: (B, C) bool, True where the completion is masked.
      probability: (B,) float32, the probability with which each position of the row was masked.
      chunk: positions projected onto the vocabulary at a time.

    Returns:
      Numerator, denominator (rows) and metrics.
    """
    scores = likelihood.score(
        policy, model, batch.prompt_tokens, batch.prompt_mask, batch.completion_tokens, masked, chunk=chunk
    )
    length = batch.completion_tokens.shape[1]
    token_loss = jnp.where(masked, -scores.logp / probability[:, None], 0.0)
    rows = jnp.asarray(batch.completion_tokens.shape[0], jnp.float32)
    hits = jnp.sum(masked, dtype=jnp.float32)
    entropy = jnp.sum(jnp.where(masked, jax.lax.stop_gradient(scores.entropy), 0.0))
    cross_entropy = jnp.sum(jnp.where(masked, -jax.lax.stop_gradient(scores.logp), 0.0))
    return LossSums(
        numerator=jnp.sum(token_loss) / length,
        denominator=rows,
        metrics={"masked_entropy": (entropy, hits), "masked_cross_entropy": (cross_entropy, hits)},
    )


def make_sft_step(
    model: llada.Model, settings: SftSettings, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> CompiledUpdate:
    """The jitted update: (state, batch, run key) -> (new state, metrics); the state is donated (see compile_update).

    Noise is keyed by (update, global row), so it does not depend on micro-batches or devices.
    """

    def loss(policy: llada.Policy, part: tuple[SftBatch, jax.Array, jax.Array]) -> LossSums:
        batch, masked, probability = part
        return sft_sums(policy, model, batch, masked, probability, settings.logprob_chunk)

    def step(state: TrainState, batch: SftBatch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = noise.row_keys(key, "sft", state.step, batch.row_ids)
        tokens = batch.completion_tokens
        every = jnp.ones_like(tokens, bool)
        noised = masking.sft_noise(keys, tokens, every, model.config.mask_token_id, settings.minimum_mask)
        parts = (batch, noised.masked, noised.probability)
        return descend(state, loss, parts, optimizer, schedule, settings.micro_batches)

    return compile_update(step)
