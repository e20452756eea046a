"""How denoising begins: inputs checked at the door, rows laid out, the canvas full of masks and hints."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.context import Context
from igpo_jax.diffusion.layout import canvas_first
from igpo_jax.diffusion.noise import Noise, RecordedNoise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.step import FILLED, HINT, State, empty_trace
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain

Array = jax.Array | np.ndarray


class Inputs(NamedTuple):
    """What a compiled denoising program takes beside the weights."""

    prompt_tokens: Array  # (B, P) int32
    prompt_valid: Array  # (B, P) bool
    hints: Array  # (B, C) int32, -1 where free
    noise: Noise
    temperature: Array  # () float32
    logit_bias: Array | None  # (V,) float32


def checked(
    model: llada.Model,
    sampler: Sampler,
    prompt_tokens: Array,
    prompt_valid: Array,
    noise: Noise | None,
    hints: Array | None,
    temperature: float | jax.Array | None,
    logit_bias: Array | None,
) -> tuple[Inputs, Sampler]:
    """The inputs of a denoising program and its static settings; arguments and errors as for denoise.denoise."""
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
    static = dataclasses.replace(sampler, temperature=float(stochastic))
    return Inputs(prompt_tokens, prompt_valid, hints, source, jnp.float32(value), logit_bias), static


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


def begin(policy: llada.Policy, inputs: Inputs, model: llada.Model, sampler: Sampler) -> tuple[Context, State]:
    """What stays the same over all steps, and the state before the first one; for use inside compiled programs."""
    rows = ("batch", "length")
    prompt_tokens, prompt_valid, hints = (constrain(jnp.asarray(x), rows) for x in inputs[:3])
    mask_id = model.config.mask_token_id
    given = (hints >= 0) & (hints != mask_id)
    canvas = jnp.where(given, hints, mask_id).astype(jnp.int32)
    context = Context(
        policy=llada.cast(policy, model),
        row=canvas_first(prompt_tokens, prompt_valid, canvas),
        given=given,
        bias=_logit_bias(inputs.logit_bias, model, sampler),
        temperature=jnp.asarray(inputs.temperature),
        noise=inputs.noise,
        model=model,
        sampler=sampler,
    )
    return context, State(canvas, jnp.where(given, HINT, FILLED).astype(jnp.int32), empty_trace(sampler, canvas))


def _logit_bias(logit_bias: Array | None, model: llada.Model, sampler: Sampler) -> jax.Array:
    """The caller's bias with -inf at the tokens that must not be drawn."""
    config = model.config
    forbidden = np.zeros(config.embedding_size, np.float32)
    if sampler.forbid_mask:
        forbidden[config.mask_token_id] = -np.inf
    if sampler.suppress_eos_logits:
        forbidden[config.eos_token_id] = -np.inf
    bias = jnp.asarray(forbidden)
    return bias if logit_bias is None else bias + logit_bias
