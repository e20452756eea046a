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

from igpo_jax.diffusion import schedule, selection
from igpo_jax.diffusion.layout import Row, canvas_first
from igpo_jax.diffusion.noise import Noise, RecordedNoise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain

__all__ = ["FILLED", "HINT", "Denoised", "Sampler", "Trace", "denoise"]

Array = jax.Array | np.ndarray

#: Entries of reveal_step for positions that no step revealed: given by a hint, or filled with EOS behind an exit (and
#: left masked, where the sampler may draw the mask token).
HINT, FILLED = -1, -2


@flax.struct.dataclass
class Trace:
    """What every denoising step of the schedule saw and did; entries of steps that were not run are zero.

    S = sampler.steps; step s belongs to block s // steps_per_block, and K-wide entries are relative to that block.
    """

    tokens: jax.Array  # (S, B, C) int32, canvas after the step
    choice: jax.Array  # (S, B, K) int32, prediction for every position of the block
    confidence: jax.Array  # (S, B, K) float32, -inf where a position was not masked
    revealed: jax.Array  # (S, B, K) bool
    ran: jax.Array  # (S,) bool


@flax.struct.dataclass
class Denoised:
    """Completions of B prompts."""

    tokens: jax.Array  # (B, C) int32
    reveal_step: jax.Array  # (B, C) int32, step of the schedule that revealed the token; HINT or FILLED if none
    forwards: jax.Array  # () int32, denoising steps run (each two network passes under guidance)
    steps_needed: jax.Array  # (B,) int32, steps that the row alone would have run
    trace: Trace | None  # only with sampler.record


@flax.struct.dataclass
class _Context:
    """What stays the same over all steps."""

    policy: llada.Policy  # compute copy
    row: Row  # prompts in canvas-first layout
    given: jax.Array  # (B, C) bool, hints
    bias: jax.Array  # (V,) float32 added to the logits
    temperature: jax.Array  # () float32
    noise: Noise
    model: llada.Model = flax.struct.field(pytree_node=False)
    sampler: Sampler = flax.struct.field(pytree_node=False)  # temperature 0 or 1: whether there is noise at all

    @property
    def mask_id(self) -> int:
        return self.model.config.mask_token_id

    @property
    def eos_id(self) -> int:
        return self.model.config.eos_token_id


@flax.struct.dataclass
class _State:
    """What a denoising step changes."""

    tokens: jax.Array  # (B, C) int32
    reveal_step: jax.Array  # (B, C) int32
    trace: Trace | None


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
      UserError: shapes do not fit each other, the row is too long for the model, or noise is missing.
    """
    if hints is None:
        hints = np.full((prompt_tokens.shape[0], sampler.length), -1, np.int32)
    _check_shapes(model, sampler, prompt_tokens, prompt_valid, hints)
    value = sampler.temperature if temperature is None else temperature
    stochastic = isinstance(value, jax.Array) or value > 0
    if noise is None and (stochastic or sampler.selection == "random"):
        raise UserError("denoise was given no noise, but a temperature above 0 or random selection draws from it")
    noise = RecordedNoise() if noise is None else noise
    # The program knows only whether there is noise: temperatures differ by value, not by compilation.
    static = dataclasses.replace(sampler, temperature=float(stochastic))
    return _denoise(
        policy, prompt_tokens, prompt_valid, hints, noise, jnp.float32(value), logit_bias, model=model, sampler=static
    )


def _check_shapes(
    model: llada.Model, sampler: Sampler, prompt_tokens: Array, prompt_valid: Array, hints: Array
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
    context = _Context(
        policy=llada.cast(policy, model),
        row=canvas_first(prompt_tokens, prompt_valid, canvas),
        given=given,
        bias=_logit_bias(logit_bias, model, sampler),
        temperature=temperature,
        noise=noise,
        model=model,
        sampler=sampler,
    )
    state = _State(canvas, jnp.where(given, HINT, FILLED).astype(jnp.int32), _empty_trace(sampler, canvas))
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


def _empty_trace(sampler: Sampler, canvas: jax.Array) -> Trace | None:
    if not sampler.record:
        return None

    def zeros(width: int, dtype: type) -> jax.Array:
        return constrain(jnp.zeros((sampler.steps, canvas.shape[0], width), dtype), (None, "batch", "length"))

    block = sampler.block_length
    ran = jnp.zeros(sampler.steps, bool)
    return Trace(
        zeros(sampler.length, jnp.int32), zeros(block, jnp.int32), zeros(block, jnp.float32), zeros(block, bool), ran
    )


def _denoise_block(context: _Context, state: _State, block: jax.Array) -> tuple[_State, jax.Array]:
    """Denoises one block; also returns the forwards (B,) that each row needed for it."""
    sampler = context.sampler
    start = block * sampler.block_length
    open_masks = jnp.sum(_block_of(context, state.tokens, start) == context.mask_id, axis=1, dtype=jnp.int32)
    steps = schedule.block_steps(open_masks, sampler.steps_per_block, sampler.block_length, sampler.step_budget)
    needed = schedule.forwards_needed(open_masks, steps)
    last = jnp.max(needed)

    def body(carry: tuple[jax.Array, _State]) -> tuple[jax.Array, _State]:
        step, state = carry
        counts = schedule.reveals_at(open_masks, steps, step)
        return step + 1, _denoise_step(context, state, start, block * sampler.steps_per_block + step, counts)

    _, state = jax.lax.while_loop(lambda carry: carry[0] < last, body, (jnp.int32(0), state))
    return _exit_at_eos(context, state, start, open_masks), needed


def _block_of(context: _Context, x: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, context.sampler.block_length, axis=1)


def _denoise_step(context: _Context, state: _State, start: jax.Array, step: jax.Array, counts: jax.Array) -> _State:
    """Predicts the block's tokens and reveals the ``counts`` (B,) most confident masked ones of each row."""
    block = _block_of(context, state.tokens, start)
    masked = block == context.mask_id
    choice, confidence = _choose(context, _block_logits(context, state.tokens, start), step)
    confidence = jnp.where(masked, confidence, -jnp.inf)
    revealed = selection.top_k_mask(confidence, counts) & masked
    tokens = _put_block(state.tokens, jnp.where(revealed, choice, block), start)
    # A drawn mask token leaves its position as it was, so no step has revealed it.
    steps = jnp.where(revealed & (choice != context.mask_id), step, _block_of(context, state.reveal_step, start))
    trace = _record(state.trace, step, Trace(tokens, choice, confidence, revealed, jnp.bool_(True)))
    return _State(tokens, _put_block(state.reveal_step, steps, start), trace)


def _put_block(x: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=1)


def _record(trace: Trace | None, step: jax.Array, entry: Trace) -> Trace | None:
    if trace is None:
        return None
    return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, step, 0), trace, entry)


def _block_logits(context: _Context, canvas: jax.Array, start: jax.Array) -> jax.Array:
    """Logits (B, K, V) float32 of the active block, with guidance and bias applied."""

    def logits_of(tokens: jax.Array) -> jax.Array:
        row = context.row
        hidden = llada.forward(context.policy, context.model, tokens, positions=row.positions, valid=row.valid)
        return llada.head_logits(context.policy, context.model, _block_of(context, hidden, start))

    logits = logits_of(context.row.with_canvas(canvas))
    if context.sampler.cfg_scale > 0:
        # Guidance is against what the model says without the prompt, and without the hints as well.
        blind = jnp.where(context.given, context.mask_id, canvas)
        prompt = jnp.full_like(context.row.tokens[:, canvas.shape[1] :], context.mask_id)
        without = logits_of(jnp.concatenate([blind, prompt], axis=1))
        logits = without + (context.sampler.cfg_scale + 1) * (logits - without)
    return logits + context.bias


def _choose(context: _Context, logits: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token (B, K) int32 and a confidence (B, K) float32 for every position of the block."""
    noisy = logits
    if context.sampler.temperature > 0:
        noisy = logits + context.temperature * context.noise.gumbel(step, logits.shape)
    choice = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    if context.sampler.selection == "random":
        return choice, context.noise.uniform(step, choice.shape)
    if context.sampler.suppress_eos_confidence:
        last = jnp.array([context.eos_id, context.sampler.eot_token_id])
        columns = jnp.arange(logits.shape[-1])
        logits = jnp.where((columns[:, None] == last).any(axis=1), -jnp.inf, logits)
    return choice, selection.choice_probability(logits, choice)


def _exit_at_eos(context: _Context, state: _State, start: jax.Array, open_masks: jax.Array) -> _State:
    """Fills the masks of finished rows with EOS.

    A row is finished when its block, part of which at least was predicted, is all EOS. With eos_exit="batch" every row
    must be; rows whose whole canvas was given have nothing to finish and do not count.
    """
    rule = context.sampler.eos_exit
    if rule == "none":
        return state
    all_eos = jnp.all(_block_of(context, state.tokens, start) == context.eos_id, axis=1)
    if rule == "row":
        finished = all_eos & (open_masks > 0)
    else:
        finished = jnp.all(all_eos | jnp.all(context.given, axis=1)) & jnp.any(open_masks > 0)
        finished = jnp.broadcast_to(finished, all_eos.shape)
    fill = (state.tokens == context.mask_id) & finished[:, None]
    return _State(jnp.where(fill, context.eos_id, state.tokens), state.reveal_step, state.trace)
