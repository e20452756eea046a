"""What is in a checkpoint folder of any kind, as rows for a table; no weights are read."""

import math
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from convert import model_dir, runs, source, staging, tokenizer_files
from convert.checkpoint_files import CheckpointFiles
from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig

Row = tuple[str, str]

_KINDS = {"model": "imported model (Orbax)", "hf": "checkpoint in Hugging Face layout", "run": "training run"}


def summary(folder: str | os.PathLike[str]) -> list[Row]:
    """Facts about a checkpoint folder, in (name, value) rows.

    Raises:
      UserError: it is none, or is damaged.
    """
    path = pathlib.Path(folder)
    kind = source.kind_of(path)
    rows = [("kind", _KINDS[kind]), *_ORIGIN[kind](path)]
    config, parameters = source.open_parameters(path)
    kinds = parameters.shapes()
    count = sum(math.prod(one.shape) for one in kinds.values())
    size = sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in kinds.values())
    rows += [("parameters", f"{count:,}"), ("dtype", str(np.dtype(next(iter(kinds.values())).dtype)))]
    rows += [("size", staging.gigabytes(size)), *_shape(config), ("tokenizer", _tokenizer(path, config))]
    return rows


def parameters(folder: str | os.PathLike[str]) -> list[tuple[str, str, str, str]]:
    """Path, shape, dtype and size of every parameter, layers stacked."""
    return [
        (path, " x ".join(map(str, kind.shape)), str(np.dtype(kind.dtype)), _size(kind))
        for path, kind in _sorted(source.open_parameters(folder)[1].shapes()).items()
    ]


def _sorted(kinds: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: kinds[path] for path in sorted(kinds)}


def _size(kind: jax.ShapeDtypeStruct) -> str:
    return staging.gigabytes(math.prod(kind.shape) * np.dtype(kind.dtype).itemsize)


def _of_model(folder: pathlib.Path) -> list[Row]:
    manifest = model_dir.read_manifest(folder)
    origin = " ".join(f"{name} {value}" for name, value in manifest["source"].items())
    return [("source", origin), ("source files", f"{len(manifest['files'])}"), ("converter", manifest["converter"])]


def _of_files(folder: pathlib.Path) -> list[Row]:
    files = CheckpointFiles.open(folder)
    return [("weight files", f"{len(files.shards)}"), ("tensors", f"{len(files)}")]


def _of_run(folder: pathlib.Path) -> list[Row]:
    run = runs.Run(folder)
    rows = [("began from", run.start_checkpoint or "scratch")]
    for stage in run.stages:
        settings = run.lora_of(stage)
        how = f"adapters of rank {settings.rank} on {', '.join(settings.layers)}" if settings.rank else "all parameters"
        steps = ", ".join(map(str, run.steps(stage))) or "none yet"
        rows.append((f"stage {stage}", f"{how}; checkpoints of steps {steps}"))
    return rows


_ORIGIN = {"model": _of_model, "hf": _of_files, "run": _of_run}


def _shape(config: ModelConfig) -> list[Row]:
    biases = [name for name in ("include_bias", "include_qkv_bias", "bias_for_layer_norm") if getattr(config, name)]
    return [
        ("layers", f"{config.n_layers} of width {config.d_model}, MLP {config.mlp_hidden_size}"),
        ("heads", f"{config.n_heads} query, {config.n_kv_heads} key and value, width {config.head_dim}"),
        ("vocabulary", f"{config.vocab_size} tokens, {config.embedding_size} rows"),
        ("longest row", f"{config.max_sequence_length} tokens, rope_theta {config.rope_theta:g}"),
        ("head", "tied to the embedding" if config.weight_tying else "its own"),
        ("biases", ", ".join(biases) or "none"),
        ("special ids", f"mask {config.mask_token_id}, end {config.eos_token_id}, padding {config.pad_token_id}"),
    ]


def _tokenizer(folder: pathlib.Path, config: ModelConfig) -> str:
    place = source.tokenizer_folder(folder)
    if place is None:
        return "none: text commands need one"
    try:
        tokenizer = tokenizer_files.check(place, config)
    except UserError as error:
        return f"does not fit: {error}"
    return tokenizer_files.describe(place, tokenizer, config).removeprefix("tokenizer: ")
