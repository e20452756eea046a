"""LLaDA as a thin ``nnx.Module``, for libraries that expect one; nothing else here imports ``flax.nnx``."""

from typing import Any

import jax
from flax import nnx

from igpo_jax.models.llada import Model, Policy, forward, head_logits
from igpo_jax.models.lora import Adapters


class LladaModule(nnx.Module):
    """Holds a policy's arrays as ``nnx.Param`` (adapters as ``nnx.LoRAParam``); computes nothing of its own."""

    def __init__(self, policy: Policy, model: Model):
        """Wraps the arrays of ``policy`` without copying them."""
        adapters = policy.adapters
        self.model = model
        self.params = nnx.data(jax.tree.map(nnx.Param, policy.params))
        self.adapters = nnx.data(jax.tree.map(nnx.LoRAParam, adapters.layers if adapters else {}))
        self.scale = adapters.scale if adapters else None

    def policy(self) -> Policy:
        """The arrays as the plain trees that the rest of the library takes."""
        adapters = None if self.scale is None else Adapters(layers=_arrays(self.adapters), scale=self.scale)
        return Policy(_arrays(self.params), adapters)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, valid: jax.Array | None = None
    ) -> jax.Array:
        """Logits (B, T, V) float32, each aligned with the token at its own place; arguments as in ``forward``."""
        policy = self.policy()
        return head_logits(policy, self.model, forward(policy, self.model, tokens, positions=positions, valid=valid))


def _arrays(tree: Any) -> Any:
    """A tree of ``nnx.Variable`` as a tree of their arrays."""
    return jax.tree.map(lambda leaf: leaf[...], tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
