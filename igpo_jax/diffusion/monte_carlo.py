"""LLaDA's Monte Carlo bound on log p(answer | prompt), as its likelihood evaluation computes it.

A sample masks k of the answer's L tokens, at random places, and weighs the cross-entropy of the masked ones by L / k.
Its negative mean is a lower bound of the log-likelihood in nats. Samples come in groups whose k are spread evenly over
1 ... L from a common random start, which takes most of the variance out (ML-GSAI/LLaDA ``get_log_likelihood.py``).
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion import likelihood
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain, to_host


@dataclasses.dataclass(frozen=True)
class MonteCarlo:
    """How many samples a bound takes. The defaults are those of LLaDA's evaluation."""

    samples: int = 128  #: masked copies of each answer, a multiple of group
    group: int = 16  #: samples whose mask counts are spread evenly; also the rows of one forward

    def __post_init__(self) -> None:
        """Raises UserError where groups do not make up the samples."""
        if self.samples < 1 or self.group < 1 or self.samples % self.group:
            raise UserError(
                f"samples is {self.samples} and group {self.group}, expected positive numbers of which the second "
                "divides the first"
            )

    def of(self, length: int) -> "MonteCarlo":
        """The same for an answer of ``length`` tokens: all samples of a single token are equal, so one will do."""
        return MonteCarlo(1, 1) if length == 1 else self


def stratified_counts(first: int | np.ndarray, length: int, group: int) -> np.ndarray:
    """How many tokens each sample of a group masks: even steps through 1 ... length from ``first`` on, going round.

    Halves round to the even number, as in the reference; a group that avoids them (any odd one) is free of the slight
    preference for even counts that follows.

    Args:
      first: (...) int in 1 ... length, what the first sample masks.
      length: tokens of the answer.
      group: samples.

    Returns:
      (..., group) int64.
    """
    places = np.asarray(first)[..., None] + np.arange(group) * (length / group)
    return (np.round(places).astype(np.int64) - 1) % length + 1


def draw_masked(rng: np.random.Generator, length: int, group: int) -> np.ndarray:
    """Draws one group of samples.

    Args:
      rng: source of the draws.
      length: tokens of the answer.
      group: samples.

    Returns:
      (group, length) bool, True where the answer is masked; every row masks at least one token.
    """
    counts = stratified_counts(int(rng.integers(1, length + 1)), length, group)
    ranks = np.argsort(rng.random((group, length)), axis=1)
    return ranks < counts[:, None]


@functools.partial(jax.jit, static_argnames=("model", "cfg_scale", "chunk"))
def log_likelihood_samples(
    policy: llada.Policy,
    model: llada.Model,
    tokens: jax.Array,
    prompt_length: jax.Array,
    answer_length: jax.Array,
    masked: jax.Array,
    probability: jax.Array,
    *,
    cfg_scale: float = 0.0,
    chunk: int = 64,
) -> jax.Array:
    """Samples of the bound for one answer: sum over masked tokens of log-probability / masking probability.

    Lengths are values, so answers that fit into the same room share a program.

    Args:
      policy: the weights.
      model: static description of the network.
      tokens: (T,) int32, prompt, answer, and then anything.
      prompt_length: () int32; prompt_length + L is at most T.
      answer_length: () int32, at most L.
      masked: (B, L) bool, masked answer tokens of each sample, False from answer_length on.
      probability: (B, L) float32, masking probability of each token, k / answer_length in LLaDA's estimate.
      cfg_scale: guidance w as in sampling, against the same row with its prompt masked; 0 is off.
      chunk: answer positions whose logits exist at one time.

    Returns:
      (B,) float32, in nats. Their mean is the bound.
    """
    rows, room = masked.shape
    masked, probability = (constrain(each, ("batch", "length")) for each in (masked, probability))
    place, tokens = jnp.arange(tokens.shape[0]), constrain(tokens, ("length",))
    nowhere = constrain(jnp.zeros((rows, tokens.shape[0]), bool), ("batch", "length"))
    hidden_places = jax.lax.dynamic_update_slice(nowhere, masked, (0, prompt_length))
    noisy = jnp.where(hidden_places, model.config.mask_token_id, tokens[None])
    valid = jnp.broadcast_to(place < prompt_length + answer_length, noisy.shape)

    def hidden_of(tokens: jax.Array) -> jax.Array:
        rows = ("batch", "length")
        hidden = llada.forward(policy, model, constrain(tokens, rows), valid=constrain(valid, rows))
        return jax.lax.dynamic_slice_in_dim(hidden, prompt_length, room, axis=1)

    hidden = hidden_of(noisy)
    if cfg_scale > 0:
        # Logits are linear in the last hidden state, so they are guided there, before they exist.
        blind = hidden_of(jnp.where(place < prompt_length, model.config.mask_token_id, noisy)).astype(jnp.float32)
        hidden = (blind + (cfg_scale + 1) * (hidden.astype(jnp.float32) - blind)).astype(model.dtype)
    targets = jnp.broadcast_to(jax.lax.dynamic_slice_in_dim(tokens, prompt_length, room), masked.shape)
    scores = likelihood.score_hidden(policy, model, hidden, constrain(targets, ("batch", "length")), chunk)
    return jnp.sum(jnp.where(masked, scores.logp / probability, 0.0), axis=1)


def draw_bound(
    policy: llada.Policy,
    model: llada.Model,
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: MonteCarlo,
    rng: np.random.Generator,
    *,
    cfg_scale: float = 0.0,
) -> np.ndarray:
    """Samples of the bound on log p(answer | prompt), whose mean is LLaDA's estimate.

    Args:
      policy: the weights, best in the compute dtype already.
      model: static description of the network.
      prompt: P tokens.
      answer: at least one token.
      settings: how many samples.
      rng: source of the masks.
      cfg_scale: guidance, see log_likelihood_samples.

    Returns:
      (samples,) float64 in nats, in order of their groups.

    Raises:
      UserError: the answer is empty, or prompt and answer are too long for the model.
    """
    _check_lengths(model, prompt, answer)
    settings = settings.of(len(answer))
    masked = [draw_masked(rng, len(answer), settings.group) for _ in range(settings.samples // settings.group)]
    given = [group.mean(axis=1, keepdims=True) * np.ones_like(group) for group in masked]
    return bound_samples(policy, model, prompt, answer, zip(masked, given, strict=True), cfg_scale=cfg_scale)


def bound_samples(
    policy: llada.Policy,
    model: llada.Model,
    prompt: Sequence[int],
    answer: Sequence[int],
    groups: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    cfg_scale: float = 0.0,
) -> np.ndarray:
    """Samples of the bound for given masks.

    Args:
      policy: the weights.
      model: static description of the network.
      prompt: P tokens.
      answer: A tokens.
      groups: (masked (B, A) bool, masking probability (B, A) float32) of each forward.
      cfg_scale: guidance.

    Returns:
      (groups x B,) float64 in nats.

    Raises:
      UserError: as draw_bound.
    """
    _check_lengths(model, prompt, answer)
    room = _rounded(len(answer))
    tokens = np.zeros(_rounded(len(prompt)) + room, np.int32)
    tokens[: len(prompt) + len(answer)] = [*prompt, *answer]
    samples = []
    for masked, probability in groups:
        fill = ((0, 0), (0, room - len(answer)))
        samples.append(
            log_likelihood_samples(
                policy,
                model,
                tokens,
                np.int32(len(prompt)),
                np.int32(len(answer)),
                np.pad(masked, fill),
                np.pad(probability.astype(np.float32), fill, constant_values=1.0),
                cfg_scale=cfg_scale,
            )
        )
    return np.concatenate([to_host(part) for part in samples]).astype(np.float64)


def _check_lengths(model: llada.Model, prompt: Sequence[int], answer: Sequence[int]) -> None:
    longest, total = model.config.max_sequence_length, len(prompt) + len(answer)
    if not len(answer):
        raise UserError("the answer has no tokens, so there is nothing to score; give every prompt an answer")
    if total > longest:
        raise UserError(
            f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens make {total}, longer than "
            f"model.max_sequence_length {longest}; shorten them"
        )


def _rounded(length: int) -> int:
    """The next larger of 16, 32, 48, 64, 96, 128, 192 ...: few programs, little waste."""
    step = max(16, 2 ** max(length - 1, 1).bit_length() // 4)
    return -(-length // step) * step
