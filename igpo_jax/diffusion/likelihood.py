"""Log-probabilities of given completions, without ever holding the logits of a whole batch."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.diffusion import selection
from igpo_jax.diffusion.layout import canvas_first
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain


@flax.struct.dataclass
class Scores:
    """Per-token values of B completions of C tokens, at every position, masked or not."""

    logp: jax.Array  # (B, C) float32, log-probability of the completion's own token
    entropy: jax.Array  # (B, C) float32, entropy of the prediction in nats; no gradient flows through it


def score(
    policy: llada.Policy,
    model: llada.Model,
    prompt_tokens: jax.Array,
    prompt_valid: jax.Array,
    completion: jax.Array,
    masked: jax.Array,
    *,
    prompt_masked: jax.Array | None = None,
    chunk: int = 64,
) -> Scores:
    """Log-probability and entropy of every completion token, given what is in view of prompt and completion.

    Args:
      policy: the weights; gradients flow to them.
      model: static description of the network.
      prompt_tokens: (B, P) int32, padded on either side.
      prompt_valid: (B, P) bool, True on prompt tokens.
      completion: (B, C) int32.
      masked: (B, C) bool, tokens that the network sees as the mask token.
      prompt_masked: (B, P) bool, prompt tokens that it sees as the mask token; None shows it all of them.
      chunk: completion positions whose logits exist at one time; the backward pass computes them again.

    Returns:
      Scores; log-softmax and entropy in float32 whatever the compute dtype.

    Raises:
      UserError: ``masked`` and ``completion`` differ in shape, or ``chunk`` is not positive.
    """
    if masked.shape != completion.shape or completion.ndim != 2:
        raise UserError(
            f"completion has shape {completion.shape} and masked {masked.shape}, "
            "expected (batch, completion length) for both"
        )
    if chunk < 1:
        raise UserError(f"chunk is {chunk}, expected a positive number of completion positions")
    rows = ("batch", "length")
    prompt_tokens, prompt_valid, completion, masked = (
        constrain(jnp.asarray(x), rows) for x in (prompt_tokens, prompt_valid, completion, masked)
    )
    canvas = jnp.where(masked, model.config.mask_token_id, completion)
    if prompt_masked is not None:
        hidden_prompt = constrain(jnp.asarray(prompt_masked), rows)
        prompt_tokens = jnp.where(hidden_prompt, model.config.mask_token_id, prompt_tokens)
    row = canvas_first(prompt_tokens, prompt_valid, canvas)
    hidden = llada.forward(policy, model, row.tokens, positions=row.positions, valid=row.lengths)
    return score_hidden(policy, model, hidden[:, : canvas.shape[1]], completion, chunk)


def score_hidden(policy: llada.Policy, model: llada.Model, hidden: jax.Array, targets: jax.Array, chunk: int) -> Scores:
    """Scores final hidden states against tokens, a few positions at a time.

    The batch axis stays whole in every chunk: it is the sharded one. Chunks are equal, the last one filled up.

    Args:
      policy: the weights.
      model: static description of the network.
      hidden: (B, C, D) as llada.forward returns them.
      targets: (B, C) int32.
      chunk: positions whose logits exist at one time.
    """
    batch, length = targets.shape
    count = -(-length // chunk)
    width = -(-length // count)

    def split(x: jax.Array) -> jax.Array:
        fill = [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, fill) if count * width > length else x
        return padded.reshape(batch, count, width, *x.shape[2:]).swapaxes(0, 1)

    head = llada.head_weights(policy, model)  # gathered once, not for every chunk

    # Without the checkpoint the scan would keep every chunk's logits for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(carry: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, Scores]:
        return carry, _score_logits(llada.head_logits(head, model, chunk[0]), chunk[1])

    _, scores = jax.lax.scan(one, None, (split(hidden), split(targets)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, count * width)[:, :length], scores)


def _score_logits(logits: jax.Array, targets: jax.Array) -> Scores:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    logp = selection.pick(logits, targets) - normaliser
    fixed, log_z = jax.lax.stop_gradient((logits, normaliser))
    probability = jnp.exp(fixed - log_z[..., None])
    # p * logit is 0 where p is 0, also for a logit of -inf.
    expected = jnp.sum(jnp.where(probability > 0, probability * fixed, 0.0), axis=-1)
    return Scores(logp, log_z - expected)
