"""The model's settings: its shape as a LLaDA ``config.json`` states it, and how it is computed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from igpo_jax.errors import UserError, check_choice, nearest

#: Fields of config.json with the only value this model computes (LLaDA's published checkpoints all have it).
_FIXED: dict[str, Any] = {
    "model_type": "llada",
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "attention_layer_norm": False,
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "init_fn": "mitchell",
    "init_cutoff_factor": None,
    "use_cache": False,
}

#: Fields that change nothing in what this model computes, with the value a new config.json gets.
_WITHOUT_EFFECT: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_device": "meta",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
}

#: Bookkeeping of the Hugging Face library, read past and never written.
_BOOKKEEPING = frozenset({"_name_or_path", "bos_token_id", "dtype", "torch_dtype", "transformers_version"})

#: Fields that may be null in config.json, or missing, because a rule fills them in.
_DERIVED = frozenset({"n_kv_heads", "mlp_hidden_size", "embedding_size", "bias_for_layer_norm"})

#: Rematerialisation choices, from fastest to smallest memory.
REMAT = ("none", "dots", "qkv_context", "context", "full")
ATTENTION = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16")


_POSITIVE = (
    *("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size", "max_sequence_length"),
    *("rope_theta", "rms_norm_eps"),
)


def _check_types(config: "ModelConfig") -> None:
    """Refuses fields of another type than their default; whole numbers are fine where a float is expected."""
    for field in dataclasses.fields(config):
        value, expected = getattr(config, field.name), type(field.default)
        if expected is float and type(value) is int:
            object.__setattr__(config, field.name, float(value))
        elif type(value) is not expected:
            raise UserError(f"model.{field.name} is {value!r}, expected {expected.__name__}")


def _check_divides(whole: str, whole_value: int, part: str, part_value: int) -> None:
    if whole_value % part_value:
        raise UserError(f"model.{whole} is {whole_value}, expected a multiple of model.{part} {part_value}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a LLaDA model; field names are those of its ``config.json``."""

    d_model: int = 4096  #: width of the residual stream
    n_layers: int = 32  #: transformer blocks
    n_heads: int = 32  #: query heads
    n_kv_heads: int = 32  #: key and value heads; query head h reads KV head h // (n_heads / n_kv_heads)
    mlp_hidden_size: int = 12288  #: columns of the gate and up projections
    vocab_size: int = 126464  #: tokens
    embedding_size: int = 126464  #: rows of the embedding and columns of the logits, at least vocab_size
    max_sequence_length: int = 4096  #: longest row, in tokens
    rope_theta: float = 500000.0  #: base of the rotary frequencies
    rms_norm_eps: float = 1e-5  #: added to the mean square
    include_bias: bool = False  #: bias in every linear layer, the head included
    include_qkv_bias: bool = False  #: bias in the query, key and value projections
    bias_for_layer_norm: bool = False  #: bias in every norm
    weight_tying: bool = False  #: the head is the embedding, without bias
    mask_token_id: int = 126336  #: the token that denoising replaces
    eos_token_id: int = 126081  #: end of text
    pad_token_id: int = 126081  #: padding

    def __post_init__(self) -> None:
        _check_types(self)
        for field in _POSITIVE:
            if getattr(self, field) <= 0:
                raise UserError(f"model.{field} is {getattr(self, field)}, expected a positive number")
        _check_divides("d_model", self.d_model, "n_heads", self.n_heads)
        _check_divides("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)
        if self.head_dim % 2:
            raise UserError(
                f"model.d_model / model.n_heads is {self.head_dim}, expected an even number for rotary positions"
            )
        if self.embedding_size < self.vocab_size:
            raise UserError(
                f"model.embedding_size is {self.embedding_size}, expected at least model.vocab_size {self.vocab_size}"
            )
        for field in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, field) < self.embedding_size:
                raise UserError(
                    f"model.{field} is {getattr(self, field)}, expected a row of the embedding "
                    f"(0 to {self.embedding_size - 1}); take it from the tokenizer"
                )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.include_bias or self.include_qkv_bias

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: str = "config.json") -> "ModelConfig":
        """Reads the contents of a LLaDA ``config.json``; every field is honoured or refused.

        Args:
          values: the decoded JSON object.
          source: the file's name, for messages.

        Raises:
          UserError: a field is missing, unknown, or has a value that this model does not compute.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name in _FIXED and value != _FIXED[name]:
                raise UserError(f"{source}: {name} is {value!r}, but only {_FIXED[name]!r} is supported")
            if name not in known | _FIXED.keys() | _WITHOUT_EFFECT.keys() | _BOOKKEEPING:
                raise UserError(f"{source}: {name} = {value!r} is not a field of a LLaDA model{nearest(name, known)}")
        required = (known - _DERIVED) | {"block_type", "activation_type", "layer_norm_type", "rope"}
        if missing := sorted(required - values.keys()):
            raise UserError(f"{source}: {', '.join(missing)} missing; copy the complete config.json of the checkpoint")
        taken = {name: values[name] for name in known - _DERIVED}
        derived = {
            "n_kv_heads": _kv_heads(values, source),
            "mlp_hidden_size": values.get("mlp_hidden_size") or values.get("mlp_ratio", 4) * values["d_model"],
            "embedding_size": values.get("embedding_size") or values["vocab_size"],
            "bias_for_layer_norm": _first(values.get("bias_for_layer_norm"), values["include_bias"]),
        }
        try:
            return cls(**taken, **derived)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """A complete ``config.json`` that the reference code and ``from_hf`` read back to this configuration."""
        return dict(sorted((_FIXED | _WITHOUT_EFFECT | dataclasses.asdict(self)).items()))


#: Named shapes, for settings and for plans without a checkpoint at hand.
SHAPES: dict[str, ModelConfig] = {"llada_8b": ModelConfig()}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the network is computed; none of it changes what is computed beyond rounding."""

    dtype: str = "float32"  #: of matrix products and activations: "float32" or "bfloat16"
    remat: str = "none"  #: what the backward pass keeps of each layer, see REMAT
    attention: str = "auto"  #: attention implementation, see ATTENTION

    def __post_init__(self) -> None:
        check_choice("compute.dtype", self.dtype, DTYPES)
        check_choice("compute.remat", self.remat, REMAT)
        check_choice("compute.attention", self.attention, ATTENTION)


@dataclasses.dataclass(frozen=True)
class Model:
    """The static description that every compiled function takes: shape and way of computing."""

    config: ModelConfig = ModelConfig()
    compute: Compute = Compute()

    @property
    def dtype(self) -> jnp.dtype:
        """Compute dtype."""
        return jnp.dtype(self.compute.dtype)


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _kv_heads(values: Mapping[str, Any], source: str) -> int:
    """n_kv_heads if given, else one under multi-query attention, else n_heads; a contradiction is refused."""
    given, multi_query = values.get("n_kv_heads"), values.get("multi_query_attention")
    implied = None if multi_query is None else (1 if multi_query else values["n_heads"])
    if given is not None and implied is not None and given != implied:
        raise UserError(
            f"{source}: multi_query_attention is {multi_query!r} but n_kv_heads is {given}; set one of them to null"
        )
    return _first(given, _first(implied, values["n_heads"]))
