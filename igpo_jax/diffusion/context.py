"""What stays the same over all denoising steps, and how a block of it is read and written."""

import flax.struct
import jax
import jax.numpy as jnp

from igpo_jax.diffusion.layout import Row
from igpo_jax.diffusion.noise import Noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain


@flax.struct.dataclass
class Context:
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
        """The mask token."""
        return self.model.config.mask_token_id

    @property
    def eos_id(self) -> int:
        """The end-of-text token."""
        return self.model.config.eos_token_id

    @property
    def draw(self) -> str:
        """How tokens are drawn, see draws.DRAWS; "none" where the most likely one is taken."""
        return self.sampler.draw if self.sampler.temperature > 0 else "none"


def block_of(context: Context, x: jax.Array, start: jax.Array) -> jax.Array:
    """The active block ``x[:, start : start + K]`` of an array (B, C or longer, ...); ``start`` is () or (B,)."""
    length = context.sampler.block_length
    if start.ndim == 0:
        return jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)
    columns = start[:, None] + jnp.arange(length, dtype=start.dtype)
    found = jnp.take_along_axis(x, columns.reshape(*columns.shape, *[1] * (x.ndim - 2)), axis=1, mode="clip")
    # A gather over a batch of one row loses the batch's layout.
    return constrain(found, ("batch", *[None] * (x.ndim - 1)))


def put_block(x: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    """``x`` (B, C) with the active block replaced by ``block`` (B, K); ``start`` is () or (B,)."""
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=1)
    place = jnp.arange(x.shape[1], dtype=start.dtype) - start[:, None]
    spread = constrain(jnp.take_along_axis(block, jnp.clip(place, 0, block.shape[1] - 1), axis=1), ("batch", None))
    return jnp.where((place >= 0) & (place < block.shape[1]), spread, x)
