"""The denoising loop: one compiled program that turns prompts, and hints where there are any, into completions.

Blocks are scanned from left to right. Within a block a while loop predicts every masked token, reveals the most
confident ones as the transfer schedule says, and stops at the last step in which some row reveals something, so no
forward is spent on a step without effect. The LM head sees the active block only. Nothing about prompts, hints or
noise changes a shape, and a row's result does not depend on the rows beside it (eos_exit="batch" excepted).

References: LLaDA ``generate.py``; IGPO (arXiv 2509.10396) ``generate_inpainting`` for hints that stay fixed.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion import schedule
from igpo_jax.diffusion.layout import canvas_first
from igpo_jax.diffusion.noise import Noise, RecordedNoise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.step import Context, State, Trace, block_of, denoise_step, empty_trace
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain

__all__ = ["FILLED", "HINT", "Denoised", "Sampler", "Trace", "denoise"]

Array = jax.Array | np.ndarray

#: Entries of reveal_step for positions that no step revealed: given by a hint, or filled with EOS behind an exit (and
#: left masked, where the sampler may draw the mask token).
HINT, FILLED = -1, -2


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
    if hints is None:
        hints = np.full((prompt_tokens.shape[0], sampler.length), -1, np.int32)
    _check_shapes(model, sampler, prompt_tokens, prompt_valid, hints, logit_bias)
    _check_tokens("prompt_tokens", prompt_tokens, model)
    _check_tokens("hints", hints, model)
    value = sampler.temperature if temperature is None else temperature
    stochastic = isinstance(value, jax.Array) or value > 0
    if not isinstance(value, jax.Array) and not 0 <= value < np.inf:
        raise UserError(f"temperature is {value}, expected 0 or more")
    draws = stochastic or sampler.selection == "random"
    if noise is None and draws:
        raise UserError("denoise was given no noise, but a temperature above 0 or random selection draws from it")
    source = noise if noise is not None and draws else RecordedNoise()
    # The program knows only whether there is noise: temperatures differ by value, not by compilation.
    source = noise if noise is not None and draws else RecordedNoise()
    static = dataclasses.replace(sampler, temperature=float(stochastic))
    return _denoise(
        policy, prompt_tokens, prompt_valid, hints, source, jnp.float32(value), logit_bias, model=model, sampler=static
    )


def _check_shapes(
    model: llada.Model,
    sampler: Sampler,
    prompt_tokens: Array,
    prompt_valid: Array,
    hints: Array,
    logit_bias: Array | None,
) -> None:
    if prompt_tokens.ndim != 2 or prompt_valid.shape != prompt_tokens.shape:
        raise UserError(
            f"prompt_tokens has shape {prompt_tokens.shape} and prompt_valid {prompt_valid.shape}, "
            "expected (batch, prompt length) for both"
        )
    if hints.shape != (prompt_tokens.shape[0], sampler.length):
        raise UserError(
            f"hints has shape {hints.shape}, expected (batch, sampler.length) = "
            f"({prompt_tokens.shape[0]}, {sampler.length}) with -1 at free places"
        )
    total = prompt_tokens.shape[1] + sampler.length
    if total > model.config.max_sequence_length:
        raise UserError(
            f"prompts of {prompt_tokens.shape[1]} and sampler.length of {sampler.length} tokens make rows of {total}, "
            f"longer than model.max_sequence_length {model.config.max_sequence_length}; shorten one of them"
        )
    if logit_bias is not None and logit_bias.shape != (model.config.embedding_size,):
        raise UserError(
            f"logit_bias has shape {logit_bias.shape}, expected ({model.config.embedding_size},), one entry per logit"
        )


def _check_tokens(name: str, tokens: Array, model: llada.Model) -> None:
    """Refuses tokens outside the embedding; looked at on the host only, since a device array may not exist yet."""
    if isinstance(tokens, np.ndarray) and tokens.size and tokens.max() >= model.config.embedding_size:
        raise UserError(
            f"{name} holds token {tokens.max()}, but the model has tokens 0 to {model.config.embedding_size - 1}; "
            "check that tokenizer and model belong together"
        )


@functools.partial(jax.jit, static_argnames=("model", "sampler"))
def _denoise(
    policy: llada.Policy,
    prompt_tokens: jax.Array,
    prompt_valid: jax.Array,
    hints: jax.Array,
    noise: Noise,
    temperature: jax.Array,
    logit_bias: jax.Array | None,
    *,
    model: llada.Model,
    sampler: Sampler,
) -> Denoised:
    rows = ("batch", "length")
    prompt_tokens, prompt_valid, hints = (constrain(x, rows) for x in (prompt_tokens, prompt_valid, hints))
    mask_id = model.config.mask_token_id
    given = (hints >= 0) & (hints != mask_id)
    canvas = jnp.where(given, hints, mask_id).astype(jnp.int32)
    context = Context(
        policy=llada.cast(policy, model),
        row=canvas_first(prompt_tokens, prompt_valid, canvas),
        given=given,
        bias=_logit_bias(logit_bias, model, sampler),
        temperature=temperature,
        noise=noise,
        model=model,
        sampler=sampler,
    )
    state = State(canvas, jnp.where(given, HINT, FILLED).astype(jnp.int32), empty_trace(sampler, canvas))
    state, needed = jax.lax.scan(
        lambda state, block: _denoise_block(context, state, block), state, jnp.arange(sampler.blocks, dtype=jnp.int32)
    )
    forwards = jnp.sum(jnp.max(needed, axis=1))
    return Denoised(state.tokens, state.reveal_step, forwards, jnp.sum(needed, axis=0), state.trace)


def _logit_bias(logit_bias: jax.Array | None, model: llada.Model, sampler: Sampler) -> jax.Array:
    """The caller's bias with -inf at the tokens that must not be drawn."""
    config = model.config
    forbidden = np.zeros(config.embedding_size, np.float32)
    if sampler.forbid_mask:
        forbidden[config.mask_token_id] = -np.inf
    if sampler.suppress_eos_logits:
        forbidden[config.eos_token_id] = -np.inf
    bias = jnp.asarray(forbidden)
    return bias if logit_bias is None else bias + logit_bias


def _denoise_block(context: Context, state: State, block: jax.Array) -> tuple[State, jax.Array]:
    """Denoises one block; also returns the forwards (B,) that each row needed for it."""
    sampler = context.sampler
    start = block * sampler.block_length
    open_masks = jnp.sum(block_of(context, state.tokens, start) == context.mask_id, axis=1, dtype=jnp.int32)
    steps = schedule.block_steps(open_masks, sampler.steps_per_block, sampler.block_length, sampler.step_budget)
    needed = schedule.forwards_needed(open_masks, steps)
    last = jnp.max(needed)

    def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        step, state = carry
        counts = schedule.reveals_at(open_masks, steps, step)
        return step + 1, denoise_step(context, state, start, block * sampler.steps_per_block + step, counts)

    _, state = jax.lax.while_loop(lambda carry: carry[0] < last, body, (jnp.int32(0), state))
    return _exit_at_eos(context, state, start, open_masks), needed


def _exit_at_eos(context: Context, state: State, start: jax.Array, open_masks: jax.Array) -> State:
    """Fills the masks of finished rows with EOS.

    A row is finished when its block, part of which at least was predicted, is all EOS. With eos_exit="batch" every row
    must be; rows whose whole canvas was given have nothing to finish and do not count.
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
