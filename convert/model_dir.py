"""The folder of an imported model.

config.json      the model's configuration, as its source states it
manifest.json    where it came from, checksums of the source files, dtype, parameter count, converter version
params/          the parameters: an Orbax checkpoint of the tree in igpo_jax.models.params, layers stacked
tokenizer/       tokenizer files, where the source had any
"""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from convert import arrays
from convert.checkpoint_files import load_config, read_json
from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig
from igpo_jax.models.params import Params, abstract

FORMAT = "igpo_jax model, version 1"
MANIFEST = "manifest.json"
PARAMS = "params"

Path = str | os.PathLike[str]


def is_model_dir(folder: pathlib.Path) -> bool:
    """Whether a folder holds an imported model."""
    return (folder / MANIFEST).is_file() and (folder / PARAMS).is_dir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an imported model.

    Raises:
      UserError: it cannot be read, or is of a format that this version does not know.
    """
    path = pathlib.Path(folder) / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')!r}, expected {FORMAT!r}; import the model again")
    return manifest


def load(folder: Path, mesh: Mesh | None = None, dtype: str | None = "float32") -> tuple[ModelConfig, Params]:
    """Reads an imported model; every device gets its own part only, and no host a full copy.

    Args:
      folder: as `python -m convert import` wrote it.
      mesh: where the parameters go; by default whole on the first device.
      dtype: "float32" or "bfloat16" to convert to while reading, None to keep what is stored.

    Raises:
      UserError: the folder is damaged, or its paths, shapes or dtypes are not those of its config.json.
    """
    manifest, config = read_manifest(folder), load_config(folder)
    path = pathlib.Path(folder) / PARAMS
    arrays.check(arrays.stored(path), arrays.flatten(abstract(config, jnp.dtype(manifest["dtype"]))), str(path))
    return config, arrays.restore(path, abstract(config, jnp.dtype(dtype or manifest["dtype"]), mesh))
