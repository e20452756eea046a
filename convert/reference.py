"""LLaDA's forward pass a second time: plain numpy in float32, one layer in memory at a time, by the tensors' own names.

Nothing of the model's code is used, neither its parameter table nor its reading of config.json, so that an error there
cannot hide here. Follows the published modeling_llada.py of LLaDA-8B.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: Reads some rows of a tensor by its name in the checkpoint, (out, in), any float dtype.
Read = Callable[[str, slice], np.ndarray]

_ALL = slice(None)

#: Columns of the logits that are computed at once: the head is the largest matrix by far.
_COLUMNS = 8192

_PREFIX = "model.transformer."


def logits(read: Read, has: Callable[[str], bool], config: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits of whole rows without padding.

    Args:
      read: the checkpoint's tensors.
      has: whether the checkpoint has a tensor; biases and the head are there or not.
      config: contents of its config.json.
      tokens: (B, T) ids.

    Returns:
      (B, T, V) float32.
    """
    network = _Network(read, has, config)
    x = np.concatenate([network.tensor("wte.weight", slice(i, i + 1)) for i in tokens.reshape(-1).tolist()])
    x = x.reshape(*tokens.shape, -1)
    cos, sin = _rotation(tokens.shape[1], config)
    for layer in range(config["n_layers"]):
        name = f"blocks.{layer}."
        x = x + network.attention(name, network.norm(f"{name}attn_norm", x), cos, sin)
        h = network.norm(f"{name}ff_norm", x)
        gate = network.linear(f"{name}ff_proj", h)
        x = x + network.linear(f"{name}ff_out", gate / (1 + np.exp(-gate)) * network.linear(f"{name}up_proj", h))
    x = network.norm("ln_f", x)
    head, size = ("wte" if config["weight_tying"] else "ff_out"), config["embedding_size"] or config["vocab_size"]
    parts = [network.linear(head, x, slice(start, min(start + _COLUMNS, size))) for start in range(0, size, _COLUMNS)]
    return np.concatenate(parts, axis=-1)


class _Network:
    """The layers by name; every weight is read when it is used and dropped right after."""

    def __init__(self, read: Read, has: Callable[[str], bool], config: Mapping[str, Any]):
        self._read, self._has, self._config = read, has, config

    def tensor(self, name: str, rows: slice = _ALL) -> np.ndarray:
        return self._read(_PREFIX + name, rows).astype(np.float32)

    def linear(self, name: str, x: np.ndarray, rows: slice = _ALL) -> np.ndarray:
        return self._biased(name, x @ self.tensor(f"{name}.weight", rows).T, rows)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean = np.mean(np.square(x), axis=-1, keepdims=True)
        scaled = x / np.sqrt(mean + np.float32(self._config["rms_norm_eps"]))
        return self._biased(name, scaled * self.tensor(f"{name}.weight"))

    def attention(self, name: str, h: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        heads = self._config["n_heads"]
        q, k, v = (self._heads(self.linear(f"{name}{part}_proj", h)) for part in "qkv")
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        # A key and value head serves as many query heads as there are more of them.
        k, v = (np.repeat(part, heads // part.shape[1], axis=1) for part in (k, v))
        scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return self.linear(f"{name}attn_out", context.swapaxes(1, 2).reshape(h.shape))

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """(B, T, H hd) as (B, H, T, hd)."""
        width = self._config["d_model"] // self._config["n_heads"]
        return x.reshape(*x.shape[:2], -1, width).swapaxes(1, 2)

    def _biased(self, name: str, x: np.ndarray, rows: slice = _ALL) -> np.ndarray:
        return x + self.tensor(f"{name}.bias", rows) if self._has(f"{_PREFIX}{name}.bias") else x


def _rotation(length: int, config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (T, hd) float32 of the rotary angles, the same for both halves of a head."""
    width = config["d_model"] // config["n_heads"]
    frequencies = config["rope_theta"] ** (-np.arange(0, width, 2) / width)
    angles = np.tile(np.arange(length)[:, None] * frequencies, 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    low, high = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-high, low], axis=-1) * sin
