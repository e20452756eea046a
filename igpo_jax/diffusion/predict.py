"""What a denoising step predicts: a token and a confidence for every masked position of the active block."""

import functools

import jax
import jax.numpy as jnp

from igpo_jax.diffusion import draws, selection
from igpo_jax.diffusion.context import Context, block_of
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain

#: Shorter blocks are always predicted whole.
_NARROWED_FROM = 16


def predict(
    context: Context, canvas: jax.Array, start: jax.Array, step: jax.Array, masked: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A token and its confidence for every masked position of the block; the entries of the others mean nothing.

    With LLaDA's vocabulary the LM head is the dearest matrix of a small model. It sees as many positions as the fullest
    row has masks, rounded up to a quarter of the block; each row's masked positions come first in what it sees.

    Args:
      context: what stays the same.
      canvas: (B, C) int32.
      start: () or (B,) int32, first position of the block.
      step: () or (B,) int32, number of the step in the whole schedule; it keys the draws.
      masked: (B, K) bool, masks of the block.

    Returns:
      (B, K) int32 tokens and (B, K) float32 confidences.
    """
    shape = masked.shape
    hidden = _hidden(context, canvas, start)
    uniforms = context.noise.token_uniforms(step, shape) if context.draw == "inverse_cdf" else None
    widths = _widths(context)
    if len(widths) == 1:
        gumbels = context.noise.gumbel(step, (*shape, context.bias.shape[0])) if context.draw == "gumbel" else None
        choice, confidence = _choose(context, hidden, uniforms, gumbels)
    else:
        order = jnp.argsort(~masked, axis=1, stable=True)
        most = jnp.max(jnp.sum(masked, axis=1, dtype=jnp.int32))
        branches = [functools.partial(_choose_first, context, width) for width in widths]
        index = jnp.sum(most > jnp.array(widths[:-1]), dtype=jnp.int32)
        choice, confidence = jax.lax.switch(index, branches, order, hidden, uniforms)
    if context.sampler.selection == "random":
        confidence = context.noise.uniform(step, shape)
    # A gather over a batch of one row loses the batch's layout.
    return constrain(choice, ("batch", "length")), constrain(confidence, ("batch", "length"))


def _widths(context: Context) -> tuple[int, ...]:
    """Numbers of positions, ascending, that the LM head is compiled for."""
    length = context.sampler.block_length
    # Gumbel values belong to whole blocks, and beside their cost there is nothing to be gained.
    if length < _NARROWED_FROM or context.draw == "gumbel":
        return (length,)
    return tuple(-(-length * quarter // 4) for quarter in (1, 2, 3, 4))


def _hidden(context: Context, canvas: jax.Array, start: jax.Array) -> tuple[jax.Array, ...]:
    """Final hidden states (B, K, D) of the block; under guidance also those without prompt and hints."""

    def run(tokens: jax.Array) -> jax.Array:
        row = context.row
        hidden = llada.forward(context.policy, context.model, tokens, positions=row.positions, valid=row.lengths)
        return block_of(context, hidden, start)

    states = run(context.row.with_canvas(canvas))
    if context.sampler.cfg_scale == 0:
        return (states,)
    # Guidance is against what the model says without the prompt, and without the hints as well.
    blind = jnp.where(context.given, context.mask_id, canvas)
    prompt = jnp.full_like(context.row.tokens[:, canvas.shape[1] :], context.mask_id)
    return states, run(jnp.concatenate([blind, prompt], axis=1))


def _choose_first(
    context: Context, width: int, order: jax.Array, hidden: tuple[jax.Array, ...], uniforms: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """``_choose`` for the first ``width`` positions in ``order`` (B, K), with zeros in the places of the others."""
    block_length = order.shape[1]
    if width == block_length:
        return _choose(context, hidden, uniforms, None)
    first = order[:, :width, None]
    hidden, uniforms = jax.tree.map(lambda x: jnp.take_along_axis(x, first, axis=1), (hidden, uniforms))
    chosen = _choose(context, hidden, uniforms, None)
    # Zeros stand behind the chosen ones, until all return to their places.
    back = jnp.argsort(order, axis=1)
    filled = (jnp.pad(x, [(0, 0), (0, block_length - width)]) for x in chosen)
    choice, confidence = (jnp.take_along_axis(x, back, axis=1) for x in filled)
    return choice, confidence


def _choose(
    context: Context, hidden: tuple[jax.Array, ...], uniforms: jax.Array | None, gumbels: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """A token (B, W) int32 and a confidence (B, W) float32 for hidden states (B, W, D)."""
    logits = _logits(context, hidden)
    if uniforms is not None:
        choice = draws.inverse_cdf(logits, context.temperature, uniforms)
    elif gumbels is not None:
        choice = draws.most_likely(logits + context.temperature * gumbels)
    else:
        choice = draws.most_likely(logits)
    if context.sampler.suppress_eos_confidence:
        last = jnp.array([context.eos_id, context.sampler.eot_token_id])
        columns = jnp.arange(logits.shape[-1])
        logits = jnp.where((columns[:, None] == last).any(axis=1), -jnp.inf, logits)
    return choice, selection.choice_probability(logits, choice)


def _logits(context: Context, hidden: tuple[jax.Array, ...]) -> jax.Array:
    """Logits (B, W, V) float32 of hidden states (B, W, D), with guidance and bias applied."""
    logits, *without = (llada.head_logits(context.policy, context.model, states) for states in hidden)
    for base in without:
        logits = base + (context.sampler.cfg_scale + 1) * (logits - base)
    return logits + context.bias
