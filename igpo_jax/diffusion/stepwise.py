"""The denoising loop driven step by step from the host, for whoever wants to watch: same steps, same tokens.

Each step is one compiled call, so a caller sees every canvas as soon as it exists. No callbacks from inside a program
are needed, which some accelerators and multi-device programs do not offer. The cost is one visit to the host a step,
little beside a forward of a large model; use denoise.denoise where nobody watches.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion import schedule
from igpo_jax.diffusion.begin import Array, begin, checked
from igpo_jax.diffusion.context import Context
from igpo_jax.diffusion.denoise import Denoised
from igpo_jax.diffusion.noise import Noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.step import State, count_masks, denoise_step, exit_at_eos
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain, to_host


@dataclasses.dataclass(frozen=True)
class Moment:
    """The canvas right after a denoising step, on the host."""

    step: int  # number of the step in the whole schedule
    block: int  # block that the step worked on
    tokens: np.ndarray  # (B, C) int32


def denoise_stepwise(
    policy: llada.Policy,
    model: llada.Model,
    sampler: Sampler,
    prompt_tokens: Array,
    prompt_valid: Array,
    noise: Noise | None,
    watch: Callable[[Moment], None],
    *,
    hints: Array | None = None,
    logit_bias: Array | None = None,
) -> Denoised:
    """Samples one completion per prompt and shows every step on the way.

    Args:
      policy: the weights, best in the compute dtype already.
      model: static description of the network.
      sampler: static settings; steps are always recorded.
      prompt_tokens: (B, P) int32, padded on either side.
      prompt_valid: (B, P) bool, True on prompt tokens.
      noise: source of the draws, as for denoise.denoise.
      watch: called after every step.
      hints: (B, C) int32, -1 where free; None for no hints.
      logit_bias: (V,) float32 added to the logits before everything else.

    Returns:
      The completions, with their trace.

    Raises:
      UserError: as denoise.denoise.
    """
    inputs, static = checked(model, sampler, prompt_tokens, prompt_valid, noise, hints, None, logit_bias)
    context, state = _begin(policy, inputs, model, dataclasses.replace(static, record=True))
    forwards, needed = 0, np.zeros(prompt_tokens.shape[0], np.int32)
    for block in range(sampler.blocks):
        start = np.int32(block * sampler.block_length)
        open_masks = to_host(_count_masks(context, state, start))
        steps = schedule.block_steps(open_masks, sampler.steps_per_block, sampler.block_length, sampler.step_budget)
        block_needed = schedule.forwards_needed(open_masks, steps)
        for offset in range(int(block_needed.max())):
            step = block * sampler.steps_per_block + offset
            counts = np.asarray(schedule.reveals_at(open_masks, steps, offset), np.int32)
            state = _step(context, state, start, np.int32(step), counts)
            watch(Moment(step, block, to_host(state.tokens)))
        state = _finish(context, state, start, open_masks)
        forwards, needed = forwards + int(block_needed.max()), needed + block_needed
    return Denoised(state.tokens, state.reveal_step, jnp.int32(forwards), jnp.asarray(needed), state.trace)


_begin = functools.partial(jax.jit, static_argnums=(2, 3))(begin)
_count_masks = jax.jit(count_masks)


@jax.jit
def _step(context: Context, state: State, start: jax.Array, step: jax.Array, counts: jax.Array) -> State:
    return denoise_step(context, state, start, step, constrain(counts, ("batch",)))


@jax.jit
def _finish(context: Context, state: State, start: jax.Array, open_masks: jax.Array) -> State:
    return exit_at_eos(context, state, start, constrain(open_masks, ("batch",)))
