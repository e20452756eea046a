"""LLaDA checkpoints in Hugging Face form (config.json and safetensors) to and from the parameter tree, bit for bit."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp  # also teaches numpy the name bfloat16, which the safetensors reader asks for
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from igpo_jax.errors import UserError, check_choice, nearest
from igpo_jax.models.config import DTYPES, ModelConfig
from igpo_jax.models.params import Params, ParamSpec, map_table, param_table, shardings

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

Path = str | os.PathLike[str]


def load_checkpoint(
    directory: Path, dtype: str | None = "float32", mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder.

    Args:
      directory: holds config.json and one model.safetensors, or shards with model.safetensors.index.json.
      dtype: "float32" or "bfloat16" to convert to, None to keep what each tensor has.
      mesh: where the parameters go, each born sharded; by default whole on the default device.

    Raises:
      UserError: a file is missing or damaged, or config and tensors do not fit together.
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    config = load_config(directory)
    host = params_from_hf(load_safetensors(directory), config, dtype, source=str(directory))
    if mesh is None:
        return config, jax.tree.map(jnp.asarray, host)
    return config, jax.tree.map(_place, host, shardings(config, mesh))


def load_config(directory: Path) -> ModelConfig:
    """Reads ``config.json`` of a checkpoint folder.

    Raises:
      UserError: the file is missing, not JSON, or describes a model that this code does not compute.
    """
    path = pathlib.Path(directory) / "config.json"
    return ModelConfig.from_hf(read_json(path), str(path))


def load_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint folder by name, in the stored dtype, layout (out, in).

    Tensors of a block may lie in different shards: the index alone says which file holds which.

    Raises:
      UserError: no weights are there, a shard is missing or damaged, or lacks a tensor that the index puts in it.
    """
    directory = pathlib.Path(directory)
    if (directory / _SINGLE).exists():
        return _read_shard(directory / _SINGLE)
    if not (directory / _INDEX).exists():
        raise UserError(f"{directory} holds neither {_SINGLE} nor {_INDEX}; pass the folder of a downloaded checkpoint")
    places = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{directory / _INDEX} has no weight_map; download the file again")
    shards = {file: _read_shard(directory / file) for file in sorted(set(places.values()))}
    for name, file in places.items():
        if name not in shards[file]:
            raise UserError(f"{directory / file} lacks {name}, which {_INDEX} puts there; download the shard again")
    return {name: shards[file][name] for name, file in places.items()}


def params_from_hf(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, dtype: str | None = None, source: str = "checkpoint"
) -> Params:
    """The parameter tree as host arrays: transposed to (in, out) and stacked over layers.

    Args:
      tensors: name -> array, as in the checkpoint.
      config: shape of the model.
      dtype: "float32" or "bfloat16" to convert to, None to keep.
      source: the checkpoint's name, for messages.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than the config says.
    """
    expected = {name for spec in jax.tree.leaves(param_table(config)) for name in _names(spec)}
    for name in sorted(tensors.keys() - expected):
        raise UserError(f"{source}: tensor {name} is not part of the model in config.json{nearest(name, expected)}")

    def fetch(_: tuple[str, ...], spec: ParamSpec) -> np.ndarray:
        parts = [_from_hf(tensors, name, spec, source) for name in _names(spec)]
        parts = [part if dtype is None else part.astype(jnp.dtype(dtype)) for part in parts]
        return np.stack(parts) if spec.stacked else np.ascontiguousarray(parts[0])

    return map_table(fetch, param_table(config))


def params_to_hf(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every tensor by its checkpoint name, in the checkpoint's layout and the parameters' dtype; in memory."""
    tensors: dict[str, np.ndarray] = {}

    def store(spec: ParamSpec, value: Any) -> None:
        host = np.asarray(value)
        for name, part in zip(_names(spec), host if spec.stacked else [host], strict=True):
            # A transposed view would be written in the wrong order.
            tensors[name] = np.ascontiguousarray(part.T if spec.transpose else part)

    jax.tree.map(store, param_table(config), params)
    return tensors


def save_checkpoint(directory: Path, config: ModelConfig, params: Params) -> None:
    """Writes config.json and one model.safetensors, made in memory; each file appears whole or not at all."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{_SINGLE}.partial"
    save_file(params_to_hf(params, config), partial, metadata={"format": "pt"})
    os.replace(partial, directory / _SINGLE)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(config.to_hf() | {"torch_dtype": dtype}, indent=2, sort_keys=True) + "\n")
    os.replace(partial, directory / "config.json")


def _names(spec: ParamSpec) -> list[str]:
    """Checkpoint names behind one parameter, one per layer where it is stacked."""
    return [spec.hf_name.format(layer=layer) for layer in range(spec.shape[0])] if spec.stacked else [spec.hf_name]


def _from_hf(tensors: Mapping[str, np.ndarray], name: str, spec: ParamSpec, source: str) -> np.ndarray:
    """One tensor of the checkpoint, checked and turned to (in, out)."""
    if name not in tensors:
        raise UserError(f"{source}: tensor {name} is missing; the checkpoint is incomplete or config.json is another's")
    shape = spec.shape[1:] if spec.stacked else spec.shape
    expected = shape[::-1] if spec.transpose else shape
    tensor = np.asarray(tensors[name])
    if tensor.shape != expected:
        raise UserError(f"{source}: tensor {name} has shape {tensor.shape}, but config.json says {expected}")
    return tensor.T if spec.transpose else tensor


def _place(array: np.ndarray, place: jax.sharding.NamedSharding) -> jax.Array:
    """A host array on the mesh; each process copies only the slices of its own devices."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def is_checkpoint_dir(folder: pathlib.Path) -> bool:
    """Whether a folder looks like a checkpoint in Hugging Face layout: config.json beside weights or their index."""
    weights = (_SINGLE, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; a UserError names the file where it is missing or is not one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; pass the folder of a downloaded checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object; download the file again")
    return values


def _read_shard(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as shard:
            return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist, but the index names it; download the shard") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again") from error
