"""The project's own forward pass with one layer in memory at a time, for models that do not fit as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from convert import layout
from convert.parameters import Parameters
from igpo_jax.models import block, llada
from igpo_jax.models.config import Compute, Model, ModelConfig


def logits(parameters: Parameters, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """Logits of whole rows without padding, computed in float32.

    Args:
      parameters: the weights, in any dtype.
      config: the model's configuration.
      tokens: (B, T) ids.

    Returns:
      (B, T, V) float32.
    """
    model, table = Model(config, Compute()), layout.flat_table(config)

    def read(path: str, layer: int | None = None) -> jax.Array:
        return jnp.asarray(parameters.read(path, layer).astype(np.float32))

    def group(prefix: str, layer: int | None = None) -> dict[str, jax.Array]:
        return {path.removeprefix(prefix): read(path, layer) for path in table if path.startswith(prefix)}

    x = jnp.asarray(parameters.read("wte/weight")[tokens].astype(np.float32))
    rotation = block.rotary_table(jnp.arange(tokens.shape[1])[None], config)
    for layer in range(config.n_layers):
        x = _block(model, group("blocks/", layer), x, rotation)
    x = block.rms_norm(x, group("ln_f/"), config.rms_norm_eps)
    head = "wte" if config.weight_tying else "ff_out"
    return np.asarray(llada.head_logits(llada.Policy({head: group(f"{head}/")}), model, x))


@functools.partial(jax.jit, static_argnums=0)
def _block(model: Model, weights: dict[str, jax.Array], x: jax.Array, rotation: block.Rotation) -> jax.Array:
    """One block; ``weights`` by path within it, as in "q_proj/weight"."""
    nested: dict[str, dict[str, jax.Array]] = {}
    for path, values in weights.items():
        name, leaf = path.split("/")
        nested.setdefault(name, {})[leaf] = values
    return block.block(block.Layer(model, nested, {}, 0.0), x, rotation, None)
