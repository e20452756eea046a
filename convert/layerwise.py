"""The project's own forward pass with one layer in memory at a time, for models that do not fit as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from convert import layout
from convert.parameters import Parameters
from igpo_jax.models import block, llada
from igpo_jax.models.config import Compute, Model, ModelConfig

#: Columns of the logits that are computed at once: the head is the largest matrix by far.
_COLUMNS = 8192


def logits(parameters: Parameters, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """Logits of whole rows without padding, computed in float32.

    Args:
      parameters: the weights, in any dtype.
      config: the model's configuration.
      tokens: (B, T) ids.

    Returns:
      (B, T, V) float32.
    """
    model, places = Model(config, Compute()), list(layout.places(config).values())

    def group(name: str, layer: int | None = None, rows: slice = layout.ALL) -> dict[str, jax.Array]:
        """The parameters under a name, by their path below it."""
        chosen = [place for place in places if place.layer == layer and place.path.startswith(f"{name}/")]
        return {
            place.path.removeprefix(f"{name}/"): jnp.asarray(parameters.read(place, rows).astype(np.float32))
            for place in chosen
        }

    embedded = [group("wte", rows=slice(i, i + 1))["weight"] for i in tokens.reshape(-1).tolist()]
    x = jnp.concatenate(embedded).reshape(*tokens.shape, config.d_model)
    rotation = block.rotary_table(jnp.arange(tokens.shape[1])[None], config)
    for layer in range(config.n_layers):
        x = _block(model, group("blocks", layer), x, rotation)
    x = block.rms_norm(x, group("ln_f"), config.rms_norm_eps)
    head = "wte" if config.weight_tying else "ff_out"
    parts = []
    for start in range(0, config.embedding_size, _COLUMNS):
        weights = group(head, rows=slice(start, min(start + _COLUMNS, config.embedding_size)))
        parts.append(np.asarray(llada.head_logits(llada.Policy({head: weights}), model, x)))
    return np.concatenate(parts, axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _block(model: Model, weights: dict[str, jax.Array], x: jax.Array, rotation: block.Rotation) -> jax.Array:
    """One block; ``weights`` by path within it, as in "q_proj/weight"."""
    nested: dict[str, dict[str, jax.Array]] = {}
    for path, values in weights.items():
        name, leaf = path.split("/")
        nested.setdefault(name, {})[leaf] = values
    return block.block(block.Layer(model, nested, {}, 0.0), x, rotation, None)
