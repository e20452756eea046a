"""Likelihood estimators of diffusion RL: what a scoring forward hides, from which it predicts the completion's tokens.

The behaviour policy, the reference and the policy being trained are always scored with the same masks.
"""

import dataclasses
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Masks:
    """What B rows hide in one scoring forward. A completion token in view is no prediction: losses leave it out."""

    completion: jax.Array  # (B, C) bool
    prompt: jax.Array | None = None  # (B, P) bool, on tokens and on padding alike; None hides nothing


class Estimator(Protocol):
    """How a completion's log-probabilities are estimated; implementations are frozen dataclasses."""

    @property
    def redraws(self) -> bool:
        """Whether every inner update has masks of its own; otherwise all share one pass of each policy."""

    def masks(self, keys: jax.Array, draw: jax.Array, draws: int, prompt: int, completion: int) -> Masks:
        """The masks of one inner update.

        Args:
          keys: (B,) typed PRNG keys, one for each row of the rollout (noise.row_keys).
          draw: () int32, the inner update, below ``draws``.
          draws: mu, inner updates of a rollout.
          prompt: P, width of the prompts.
          completion: C, length of the completions.
        """


@dataclasses.dataclass(frozen=True)
class MeanField:
    """IGPO (arXiv 2509.10396, section 3.1): the whole completion masked, the prompt clean, every token in one go."""

    redraws = False

    def masks(self, keys: jax.Array, draw: jax.Array, draws: int, prompt: int, completion: int) -> Masks:
        """All True on completions, whatever the keys; see Estimator."""
        del draw, draws, prompt
        return Masks(jnp.ones((keys.shape[0], completion), bool))


@dataclasses.dataclass(frozen=True)
class PromptMasking:
    """DiffuGRPO (d1, diffu_grpo_trainer.py::forward_process): as MeanField, but prompt tokens are masked at random too.

    Each inner update sees other prompts, which is what lets one rollout serve many of them.
    """

    rate: float = 0.15  #: probability with which each prompt token is masked, on its own

    redraws = True

    def masks(self, keys: jax.Array, draw: jax.Array, draws: int, prompt: int, completion: int) -> Masks:
        """Completions all True, prompts at ``rate``; see Estimator."""
        del draws

        def row(key: jax.Array) -> Masks:
            hidden = jax.random.uniform(jax.random.fold_in(key, draw), (prompt,)) < self.rate
            return Masks(jnp.ones(completion, bool), hidden)

        return jax.vmap(row)(keys)


@dataclasses.dataclass(frozen=True)
class StructuredNoising:
    """UniGRPO (MMaDA, arXiv 2505.15809, Algorithm 1): mask ratios spread evenly from a random start to full masking.

    Each row draws a start t_0 in 1..T-1; inner update n of mu masks each of its tokens with probability t_n / T, where
    t_n = t_0 + floor(n (T - t_0) / (mu - 1)), so that the last one masks everything; a single update masks at t_0 / T.
    """

    timesteps: int = 128  #: T

    redraws = True

    def timestep(self, start: jax.Array, draw: jax.Array, draws: int) -> jax.Array:
        """t_n for t_0 = ``start`` and n = ``draw``, integers of any shape."""
        return start + draw * (self.timesteps - start) // max(draws - 1, 1)

    def masks(self, keys: jax.Array, draw: jax.Array, draws: int, prompt: int, completion: int) -> Masks:
        """Completions at the row's mask ratio, prompts in view; see Estimator."""
        del prompt

        def row(key: jax.Array) -> Masks:
            start = jax.random.randint(jax.random.fold_in(key, draws), (), 1, self.timesteps)
            ratio = self.timestep(start, draw, draws) / self.timesteps
            return Masks(jax.random.uniform(jax.random.fold_in(key, draw), (completion,)) < ratio)

        return jax.vmap(row)(keys)


ESTIMATORS: dict[str, Estimator] = {
    "mean_field": MeanField(),
    "prompt_masking": PromptMasking(),
    "structured_noising": StructuredNoising(),
}
