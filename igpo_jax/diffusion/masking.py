"""The forward process: how clean completions are masked for supervised training."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Noised:
    """B rows of T tokens after the forward process."""

    tokens: jax.Array  # (B, T) int32, the mask token at masked places
    masked: jax.Array  # (B, T) bool
    probability: jax.Array  # (B,) float32, with which each maskable token of the row was masked


def mask_probability(t: jax.Array, eps: float = 1e-3) -> jax.Array:
    """p = (1 - eps) t + eps, the masking probability at time t (LLaDA's GUIDELINES.md); never zero, so 1/p is finite.

    Args:
      t: (...) float32 in [0, 1].
      eps: probability at t = 0.

    Returns:
      (...) float32.
    """
    return (1.0 - eps) * t + eps


def apply_noise(
    tokens: jax.Array, t: jax.Array, u: jax.Array, maskable: jax.Array, mask_token_id: int, eps: float = 1e-3
) -> Noised:
    """Masks each maskable token whose uniform draw lies below the row's masking probability.

    Args:
      tokens: (B, T) int32.
      t: (B,) float32 times in [0, 1].
      u: (B, T) float32 uniform draws.
      maskable: (B, T) bool; prompts and padding are False, the EOS tokens that fill a completion are True.
      mask_token_id: what masked tokens become.
      eps: see mask_probability.

    Returns:
      The noised rows.
    """
    probability = mask_probability(t, eps)
    masked = (u < probability[:, None]) & maskable
    return Noised(jnp.where(masked, jnp.int32(mask_token_id), tokens), masked, probability)


def sft_noise(
    keys: jax.Array, completion: jax.Array, maskable: jax.Array, mask_token_id: int, eps: float = 1e-3
) -> Noised:
    """The forward process on completions: t ~ U[0, 1) per row, then independent masks; prompts are never masked.

    Args:
      keys: (B,) typed PRNG keys, one per row (noise.row_keys).
      completion: (B, C) int32, filled up with EOS.
      maskable: (B, C) bool, normally all True: the filling EOS tokens are learnt like any other.
      mask_token_id: what masked tokens become.
      eps: see mask_probability.

    Returns:
      The noised completions.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        t_key, u_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        return jax.random.uniform(t_key), jax.random.uniform(u_key, completion.shape[1:])

    t, u = jax.vmap(draw)(keys)
    return apply_noise(completion, t, u, maskable, mask_token_id, eps)
