"""What stays the same over all denoising steps."""

import flax.struct
import jax

from igpo_jax.diffusion.layout import Row
from igpo_jax.diffusion.noise import Noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada


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
    """The active block ``x[:, start : start + K]`` of an array (B, C or longer, ...)."""
    return jax.lax.dynamic_slice_in_dim(x, start, context.sampler.block_length, axis=1)
