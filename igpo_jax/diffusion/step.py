"""One denoising step: predict the active block, and reveal its most confident masked positions."""

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.diffusion import selection
from igpo_jax.diffusion.context import Context, block_of, put_block
from igpo_jax.diffusion.predict import predict
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.parallel.sharding import constrain

#: Entries of reveal_step for positions that no step revealed: given by a hint, or filled with EOS behind an exit (and
#: left masked, where the sampler may draw the mask token).
HINT, FILLED = -1, -2


@flax.struct.dataclass
class Trace:
    """What every denoising step of the schedule saw and did; entries of steps that were not run are zero.

    S = sampler.steps; step s belongs to block s // steps_per_block, and K-wide entries are relative to that block.
    """

    tokens: jax.Array  # (S, B, C) int32, canvas after the step
    choice: jax.Array  # (S, B, K) int32, prediction for every masked position of the block, else the token there
    confidence: jax.Array  # (S, B, K) float32, -inf where a position was not masked
    revealed: jax.Array  # (S, B, K) bool
    ran: jax.Array  # (S,) bool


@flax.struct.dataclass
class State:
    """What a denoising step changes."""

    tokens: jax.Array  # (B, C) int32
    reveal_step: jax.Array  # (B, C) int32
    trace: Trace | None


def empty_trace(sampler: Sampler, canvas: jax.Array) -> Trace | None:
    """Zeros for every step of the schedule, None unless the sampler records; ``canvas`` is (B, C)."""
    if not sampler.record:
        return None

    def zeros(width: int, dtype: type) -> jax.Array:
        return constrain(jnp.zeros((sampler.steps, canvas.shape[0], width), dtype), (None, "batch", "length"))

    block = sampler.block_length
    ran = jnp.zeros(sampler.steps, bool)
    return Trace(
        zeros(sampler.length, jnp.int32), zeros(block, jnp.int32), zeros(block, jnp.float32), zeros(block, bool), ran
    )


def count_masks(context: Context, state: State, start: jax.Array) -> jax.Array:
    """Masks (B,) int32 in each row's active block."""
    return jnp.sum(block_of(context, state.tokens, start) == context.mask_id, axis=1, dtype=jnp.int32)


def denoise_step(context: Context, state: State, start: jax.Array, step: jax.Array, counts: jax.Array) -> State:
    """Predicts the block's tokens and reveals the ``counts`` (B,) most confident masked ones of each row.

    Args:
      context: what stays the same.
      state: before the step.
      start: () int32, first position of the block; or (B,), each row's own.
      step: () int32, number of the step in the whole schedule, which keys the draws; or (B,), each row's own.
      counts: (B,) int32.

    Returns:
      The state after the step.
    """
    block = block_of(context, state.tokens, start)
    masked = block == context.mask_id
    choice, confidence = predict(context, state.tokens, start, step, masked)
    choice, confidence = jnp.where(masked, choice, block), jnp.where(masked, confidence, -jnp.inf)
    revealed = selection.top_k_mask(confidence, counts) & masked
    tokens = put_block(state.tokens, jnp.where(revealed, choice, block), start)
    # A drawn mask token leaves its position as it was, so no step has revealed it.
    now = revealed & (choice != context.mask_id)
    steps = jnp.where(now, step[..., None], block_of(context, state.reveal_step, start))
    trace = _record(state.trace, step, Trace(tokens, choice, confidence, revealed, jnp.bool_(True)))
    return State(tokens, put_block(state.reveal_step, steps, start), trace)


def exit_at_eos(context: Context, state: State, start: jax.Array, open_masks: jax.Array) -> State:
    """Fills the masks of finished rows with EOS; call it after the last step of a block.

    A row is finished when its block, part of which at least was predicted, is all EOS. With eos_exit="batch" every row
    must be; rows whose whole canvas was given have nothing to finish and do not count.

    Args:
      context: what stays the same.
      state: after the block.
      start: () int32, first position of the block; or (B,), each row's own.
      open_masks: (B,) int32, masks in the block before its first step; 0 for rows that are not at its end.
    """
    rule = context.sampler.eos_exit
    if rule == "none":
        return state
    all_eos = jnp.all(block_of(context, state.tokens, start) == context.eos_id, axis=1)
    if rule == "row":
        finished = all_eos & (open_masks > 0)
    else:
        finished = jnp.all(all_eos | jnp.all(context.given, axis=1)) & jnp.any(open_masks > 0)
        finished = jnp.broadcast_to(finished, all_eos.shape)
    fill = (state.tokens == context.mask_id) & finished[:, None]
    return State(jnp.where(fill, context.eos_id, state.tokens), state.reveal_step, state.trace)


def _record(trace: Trace | None, step: jax.Array, entry: Trace) -> Trace | None:
    if trace is None:
        return None
    return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, step, 0), trace, entry)
