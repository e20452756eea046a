"""Model FLOPs by formula: what a forward and an update need, whatever the compiler makes of them.

A matrix product of (n, i) with (i, o) counts 2 n i o. Attention looks both ways, so it is not halved: 4 T T D for each
layer and row of T tokens, with D the joined width of the query heads. The head counts only where it is applied, the
embedding is a look-up, and norms, rotations and softmax (below 1% at 8B) are left out, as in the PaLM paper's
appendix B. Recomputation in the backward pass (remat) is no model FLOP: divided by peak x seconds they give MFU.
"""

import math

from igpo_jax.models.config import ModelConfig
from igpo_jax.models.lora import LoraSettings, adapter_table
from igpo_jax.models.params import linear_shapes


def forward_flops(
    config: ModelConfig, rows: int, length: int, head_positions: int, lora: LoraSettings | None = None
) -> float:
    """FLOPs of one forward pass.

    Args:
      config: the model's shape.
      rows: rows B.
      length: tokens T of a row, padding included (it is computed like the rest).
      head_positions: positions of each row that are projected onto the vocabulary.
      lora: adapters computed beside the weights, None (or rank 0) for none.
    """
    dense = config.n_layers * _block_matmuls(config) + _adapter_matmuls(config, lora)
    return rows * (2.0 * length * dense + _attention(config, length) + _head(config, head_positions))


def update_flops(
    config: ModelConfig, rows: int, length: int, head_positions: int, lora: LoraSettings | None = None
) -> float:
    """FLOPs of one forward and backward pass; arguments as for ``forward_flops``.

    Full fine-tuning is three forwards: the backward pass needs the gradient of every product's both factors. Under LoRA
    the frozen weights (and the head) need no gradient of their own, so they count twice and not three times; attention
    and the adapters still count three times. The optimizer's few operations per parameter are left out.
    """
    forward = forward_flops(config, rows, length, head_positions, lora)
    if lora is None or not lora.rank:
        return 3 * forward
    frozen = 2.0 * length * config.n_layers * _block_matmuls(config) + _head(config, head_positions)
    return 3 * forward - rows * frozen


def _block_matmuls(config: ModelConfig) -> int:
    """Entries of the seven matrices of one block."""
    return sum(inputs * outputs for inputs, outputs, _, _ in linear_shapes(config).values())


def _adapter_matmuls(config: ModelConfig, lora: LoraSettings | None) -> int:
    """Entries of all adapter matrices of all layers."""
    if lora is None or not lora.rank:
        return 0
    return sum(math.prod(spec.shape) for pair in adapter_table(lora, config).values() for spec in pair.values())


def _attention(config: ModelConfig, length: int) -> float:
    """FLOPs of scores and mixing for one row in all layers."""
    return 4.0 * length * length * config.n_heads * config.head_dim * config.n_layers


def _head(config: ModelConfig, positions: int) -> float:
    return 2.0 * positions * config.d_model * config.embedding_size
