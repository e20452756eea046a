"""The denoising loop: one compiled program that turns prompts, and hints where there are any, into completions.

Every row completes its blocks from left to right. A step predicts every masked token of a row's active block and
reveals the most confident ones as the transfer schedule says; steps that would reveal nothing are left out. Rows move
on alone (``sampler.pace``), so rows with many hints are done early, or together, in a scan over blocks whose steps go
on until the slowest row is through; tokens are the same. The LM head sees active blocks only. Nothing about prompts,
hints or noise changes a shape, and a row's result does not depend on the rows beside it (eos_exit="batch" excepted).

References: LLaDA ``generate.py``; IGPO (arXiv 2509.10396) ``generate_inpainting`` for hints that stay fixed.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.diffusion import pace, schedule
from igpo_jax.diffusion.begin import Array, Inputs, begin, checked
from igpo_jax.diffusion.context import Context
from igpo_jax.diffusion.noise import Noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.step import FILLED, HINT, State, Trace, count_masks, denoise_step, exit_at_eos
from igpo_jax.models import llada

__all__ = ["FILLED", "HINT", "Denoised", "Sampler", "Trace", "denoise"]


@flax.struct.dataclass
class Denoised:
    """Completions of B prompts."""

    tokens: jax.Array  # (B, C) int32
    reveal_step: jax.Array  # (B, C) int32, step of the schedule that revealed the token; HINT or FILLED if none
    forwards: jax.Array  # () int32, denoising steps run (each two network passes under guidance)
    steps_needed: jax.Array  # (B,) int32, steps that the row alone would have run
    trace: Trace | None  # only with sampler.record


def denoise(
    policy: llada.Policy,
    model: llada.Model,
    sampler: Sampler,
    prompt_tokens: Array,
    prompt_valid: Array,
    noise: Noise | None,
    *,
    hints: Array | None = None,
    temperature: float | jax.Array | None = None,
    logit_bias: Array | None = None,
) -> Denoised:
    """Samples one completion per prompt.

    Args:
      policy: the weights.
      model: static description of the network.
      sampler: static settings.
      prompt_tokens: (B, P) int32, padded on either side.
      prompt_valid: (B, P) bool, True on prompt tokens.
      noise: source of the draws (noise.KeyNoise); None will do at temperature 0 with confidence selection.
      hints: (B, C) int32 tokens that are given and never change, -1 where free. None for no hints.
      temperature: overrides sampler.temperature; the value is traced, so temperatures above zero share a program.
      logit_bias: (V,) float32 added to the logits before everything else.

    Returns:
      The completions. With sampler.forbid_mask no mask token is left; without it, a position whose draws were the
      mask token up to the block's last step keeps it, as in the reference.

    Raises:
      UserError: shapes do not fit each other, the row is too long for the model, a token of a host array is not one
        of its tokens, the temperature is negative, or noise is missing.
    """
    inputs, static = checked(model, sampler, prompt_tokens, prompt_valid, noise, hints, temperature, logit_bias)
    return _denoise(policy, inputs, model=model, sampler=static)


@functools.partial(jax.jit, static_argnames=("model", "sampler"))
def _denoise(policy: llada.Policy, inputs: Inputs, *, model: llada.Model, sampler: Sampler) -> Denoised:
    context, state = begin(policy, inputs, model, sampler)
    if sampler.rows_apart:
        state, forwards, needed = pace.denoise_rows(context, state)
        return Denoised(state.tokens, state.reveal_step, forwards, needed, None)
    state, needed = jax.lax.scan(
        lambda state, block: denoise_block(context, state, block), state, jnp.arange(sampler.blocks, dtype=jnp.int32)
    )
    forwards = jnp.sum(jnp.max(needed, axis=1))
    return Denoised(state.tokens, state.reveal_step, forwards, jnp.sum(needed, axis=0), state.trace)


def denoise_block(context: Context, state: State, block: jax.Array) -> tuple[State, jax.Array]:
    """Denoises one block, for use inside compiled programs.

    Args:
      context: what stays the same.
      state: before the block.
      block: () int32, its number.

    Returns:
      The state after the block, and the forwards (B,) int32 that each row needed for it.
    """
    sampler = context.sampler
    start = block * sampler.block_length
    open_masks = count_masks(context, state, start)
    steps = schedule.block_steps(open_masks, sampler.steps_per_block, sampler.block_length, sampler.step_budget)
    needed = schedule.forwards_needed(open_masks, steps)
    last = jnp.max(needed)

    def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        step, state = carry
        counts = schedule.reveals_at(open_masks, steps, step)
        return step + 1, denoise_step(context, state, start, block * sampler.steps_per_block + step, counts)

    _, state = jax.lax.while_loop(lambda carry: carry[0] < last, body, (jnp.int32(0), state))
    return exit_at_eos(context, state, start, open_masks), needed
