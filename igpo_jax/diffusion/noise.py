"""Random draws of the sampler, keyed by row and step so that no result depends on how rows are batched or sharded."""

import zlib
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.errors import UserError
from igpo_jax.parallel.sharding import under_mesh

_GUMBEL, _UNIFORM, _TOKEN = 0, 1, 2  # the draws of one step must not share bits


class Noise(Protocol):
    """What the denoising loop asks of a source of noise; implementations are pytrees.

    ``step`` is () int32, or (B,) where rows are at different steps.
    """

    def gumbel(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard Gumbel draws (B, K, V) float32 for the active block at denoising step ``step``."""

    def uniform(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform draws (B, K) float32 in [0, 1) for the active block at denoising step ``step``."""

    def token_uniforms(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform draws (B, K, 2) float32 in [0, 1) that pick the tokens of a block of ``shape`` (B, K)."""


def row_keys(root: jax.Array, purpose: str | int, step: Any, rows: Any) -> jax.Array:
    """One key per row: the root folded with the purpose, the step and the global row number.

    Args:
      root: typed PRNG key of the run.
      purpose: what the draws are for, such as "rollout"; a name is hashed with CRC-32.
      step: int, outer step.
      rows: (B,) int, global row numbers (< 2^32).

    Returns:
      (B,) typed PRNG keys.
    """
    number = zlib.crc32(purpose.encode()) if isinstance(purpose, str) else purpose
    base = jax.random.fold_in(jax.random.fold_in(root, jnp.uint32(number)), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, jnp.asarray(rows))


def gumbel_from_bits(bits: jax.Array) -> jax.Array:
    """Standard Gumbel values -ln(E), E = -ln(1 - u) exponential, from 32 random bits each.

    u = bits / 2^32 keeps its full resolution near zero, where the large Gumbel values that decide an argmax come
    from: values up to 22.9 occur, and a vocabulary of 126,464 needs about 12. The usual float32 uniform has 23 bits
    and cuts the tail at 15.9. Coarse steps lie only at the harmless low end.

    Args:
      bits: (...) uint32.

    Returns:
      (...) float32, finite.
    """
    uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    largest = jnp.float32(1.0 - 2.0**-24)  # rounding could reach 1, whose logarithm is infinite
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, largest)))


@flax.struct.dataclass
class KeyNoise:
    """Draws keyed by (row key, denoising step): equal on any batch split and any number of devices."""

    keys: jax.Array  # (B,) typed PRNG keys, see row_keys

    def gumbel(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard Gumbel draws (B, K, V) float32; see Noise."""

        _check_rows(self.keys, shape)

        def row(key: jax.Array, step: jax.Array) -> jax.Array:
            return jax.random.bits(_step_key(key, step, _GUMBEL), shape[1:], jnp.uint32)

        return gumbel_from_bits(jax.vmap(row)(self.keys, _per_row(self.keys, step)))

    def uniform(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform draws (B, K) float32 in [0, 1); see Noise."""
        return self._uniforms(step, shape, _UNIFORM)

    def token_uniforms(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform draws (B, K, 2) float32 in [0, 1); see Noise."""
        return self._uniforms(step, (*shape, 2), _TOKEN)

    def _uniforms(self, step: jax.Array, shape: tuple[int, ...], draw: int) -> jax.Array:
        _check_rows(self.keys, shape)

        def row(key: jax.Array, step: jax.Array) -> jax.Array:
            return jax.random.uniform(_step_key(key, step, draw), shape[1:], jnp.float32)

        return jax.vmap(row)(self.keys, _per_row(self.keys, step))


def _per_row(keys: jax.Array, step: jax.Array) -> jax.Array:
    """``step`` of each row (B,), laid out as the keys are."""
    steps = jnp.broadcast_to(step, keys.shape)
    return jax.reshard(steps, jax.typeof(keys).sharding.spec) if under_mesh() else steps


def _check_rows(keys: jax.Array, shape: tuple[int, ...]) -> None:
    # One key would broadcast and give every row the same draws.
    if keys.shape != shape[:1]:
        raise UserError(f"KeyNoise has keys of shape {keys.shape}, expected one for each of {shape[0]} rows")


def _step_key(key: jax.Array, step: jax.Array, draw: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, step), draw)


@flax.struct.dataclass
class RecordedNoise:
    """Draws written down beforehand, one entry per denoising step of the schedule; for parity with other samplers."""

    gumbels: jax.Array | None = None  # (S, B, K, V) float32 standard Gumbel values, for draw="gumbel"
    uniforms: jax.Array | None = None  # (S, B, K) float32, for random selection
    tokens: jax.Array | None = None  # (S, B, K, 2) float32 uniforms, for draw="inverse_cdf"

    def gumbel(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The recorded (B, K, V) of ``step``; see Noise."""
        return _recorded(self.gumbels, "gumbels", step, shape)

    def uniform(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The recorded (B, K) of ``step``; see Noise."""
        return _recorded(self.uniforms, "uniforms", step, shape)

    def token_uniforms(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The recorded (B, K, 2) of ``step``; see Noise."""
        return _recorded(self.tokens, "tokens", step, (*shape, 2))


def _recorded(draws: jax.Array | None, name: str, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if draws is None or draws.shape[1:] != shape:
        found = "nothing" if draws is None else f"draws of shape {draws.shape[1:]} a step"
        raise UserError(f"RecordedNoise.{name} holds {found}, but the sampler asks for shape {shape} at every step")
    if jnp.ndim(step):
        return jax.vmap(_at_step, in_axes=(1, 0))(draws, step)
    return _at_step(draws, step)


def _at_step(draws: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(draws, step, axis=0, keepdims=False)
