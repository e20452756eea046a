"""Denoising in which every row is in a block and at a step of its own.

A row is done after the forwards that it needs itself, so a program of rows with like needs pays little more than they
need, whichever of their blocks the hints lie in. What a row sees, draws and reveals is what it would in any company.
"""

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.diffusion import schedule
from igpo_jax.diffusion.context import Context
from igpo_jax.diffusion.step import State, denoise_step, exit_at_eos
from igpo_jax.parallel.sharding import constrain


@flax.struct.dataclass
class _Place:
    """Where each of B rows is; a finished row is behind the last block and has no masks to reveal."""

    block: jax.Array  # (B,) int32
    step: jax.Array  # (B,) int32, next step within the block
    open_masks: jax.Array  # (B,) int32, masks in the block before its first step


def denoise_rows(context: Context, state: State) -> tuple[State, jax.Array, jax.Array]:
    """Denoises every row to its end, for use inside compiled programs.

    Args:
      context: what stays the same.
      state: before the first step.

    Returns:
      The state after the last step, the forwards () int32 of the program, and those (B,) int32 that each row needed.
    """
    before = constrain(jnp.full(state.tokens.shape[:1], -1, jnp.int32), ("batch",))
    place = _next_block(context, state, before)
    start = (state, place, jnp.int32(0), jnp.zeros_like(place.step))

    def body(carry: tuple[State, _Place, jax.Array, jax.Array]) -> tuple[State, _Place, jax.Array, jax.Array]:
        state, place, forwards, needed = carry
        state, place = _step(context, state, place)
        return state, place, forwards + 1, needed + (carry[1].open_masks > 0)

    state, _, forwards, needed = jax.lax.while_loop(lambda carry: jnp.any(carry[1].open_masks > 0), body, start)
    return state, forwards, needed


def _step(context: Context, state: State, place: _Place) -> tuple[State, _Place]:
    """One forward for all rows; those at the end of their block end there or go on to their next one."""
    sampler = context.sampler
    # A finished row looks at the last block, where it reveals nothing.
    start = jnp.minimum(place.block, sampler.blocks - 1) * sampler.block_length
    steps = schedule.block_steps(place.open_masks, sampler.steps_per_block, sampler.block_length, sampler.step_budget)
    counts = schedule.reveals_at(place.open_masks, steps, place.step)
    number = jnp.minimum(place.block * sampler.steps_per_block + place.step, sampler.steps - 1)
    state = denoise_step(context, state, start, number, counts)
    through = place.step + 1 >= schedule.forwards_needed(place.open_masks, steps)
    state = exit_at_eos(context, state, start, jnp.where(through, place.open_masks, 0))
    return state, jax.tree.map(
        lambda new, old: jnp.where(through, new, old),
        _next_block(context, state, place.block),
        _Place(place.block, place.step + 1, place.open_masks),
    )


def _next_block(context: Context, state: State, block: jax.Array) -> _Place:
    """The first step of each row's first block behind ``block`` (B,) that has a mask."""
    sampler = context.sampler
    is_mask = (state.tokens == context.mask_id).reshape(-1, sampler.blocks, sampler.block_length)
    masks = jnp.sum(is_mask, axis=2, dtype=jnp.int32)
    ahead = (jnp.arange(sampler.blocks, dtype=jnp.int32) > block[:, None]) & (masks > 0)
    first = jnp.argmax(ahead, axis=1).astype(jnp.int32)
    is_first = ahead & (jnp.cumsum(ahead, axis=1) == 1)
    open_masks = jnp.sum(jnp.where(is_first, masks, 0), axis=1)
    return _Place(jnp.where(open_masks > 0, first, sampler.blocks), jnp.zeros_like(first), open_masks)
