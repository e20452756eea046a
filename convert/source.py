"""One way to open a model, whatever holds it: an imported model folder, a Hugging Face folder, or a run directory."""

import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convert import hf, model_dir, runs, tokenizer_files
from convert.checkpoint_files import CheckpointFiles, is_checkpoint_dir, load_config
from convert.parameters import CheckpointParameters, Parameters, StoredParameters, check
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models.config import DTYPES, ModelConfig
from igpo_jax.models.params import Params

Path = str | os.PathLike[str]


def load_model(
    path: Path, mesh: Mesh | None = None, dtype: str | None = "float32"
) -> tuple[ModelConfig, Params, Tokenizer | None]:
    """Opens the model in a folder.

    Args:
      path: a folder that ``python -m convert import`` wrote, a LLaDA checkpoint in Hugging Face layout, or a run
        directory of ``igpo_jax.train``, of which the newest stage is taken, adapters merged.
      mesh: where the parameters go, each born sharded; by default whole on the first device.
      dtype: "float32" or "bfloat16" to convert to, None to keep what is stored.

    Returns:
      (config, params, tokenizer); the tokenizer is None where the folder has no tokenizer files.

    Raises:
      UserError: the folder is none of these, or something in it is missing, damaged or does not fit together.
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    kind = kind_of(path)
    # Whatever is wrong with the small files is said before gigabytes are read.
    tokenizer = find_tokenizer(path)
    config, params = _LOADERS[kind](path, mesh, dtype)
    return config, params, tokenizer


def read_config(path: Path) -> ModelConfig:
    """The configuration of the model in a folder of any kind."""
    return runs.Run(path).config if kind_of(path) == "run" else load_config(path)


def open_parameters(path: Path) -> tuple[ModelConfig, Parameters]:
    """Opens the same folders as ``load_model``, to be read piece by piece on the host.

    Raises:
      UserError: as ``load_model`` does.
    """
    kind, folder = kind_of(path), pathlib.Path(path)
    if kind == "run":
        run = runs.Run(folder)
        return run.config, run.open(run.newest_stage(), lambda start: open_parameters(start)[1])
    config = load_config(folder)
    if kind == "hf":
        return config, CheckpointParameters(CheckpointFiles.open(folder), config)
    model_dir.read_manifest(folder)
    stored = StoredParameters(folder / model_dir.PARAMS)
    check(stored, config, str(folder / model_dir.PARAMS))
    return config, stored


def kind_of(path: Path) -> str:
    """Says what a folder is: "model" (imported), "run" (training) or "hf" (Hugging Face layout).

    Raises:
      UserError: it is none of these.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass the folder of a checkpoint")
    if model_dir.is_model_dir(folder):
        return "model"
    if runs.is_run_dir(folder):
        return "run"
    if is_checkpoint_dir(folder):
        return "hf"
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{folder} is not a checkpoint (it holds {found}); expected a folder of `python -m convert import`, a Hugging "
        "Face folder with config.json and its weights, or a run directory of igpo_jax.train"
    )


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer stored in a checkpoint folder, or None where there is none.

    Raises:
      UserError: it is damaged, or its special ids are not those of the model's configuration.
    """
    folder = tokenizer_folder(pathlib.Path(path))
    return tokenizer_files.check(folder, read_config(path)) if folder else None


def tokenizer_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """Where a checkpoint folder keeps its tokenizer files, None where it has none."""
    places = (folder / "tokenizer", folder)
    return next((place for place in places if tokenizer_files.present(place)), None)


def _load_hf(path: Path, mesh: Mesh | None, dtype: str | None) -> tuple[ModelConfig, Params]:
    return hf.load_checkpoint(path, dtype, mesh)


def _load_run(path: Path, mesh: Mesh | None, dtype: str | None) -> tuple[ModelConfig, Params]:
    config, params = runs.load(path, mesh, start=_load_start)
    return config, params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)


def _load_start(path: Path, mesh: Mesh | None) -> Params:
    """The checkpoint that a run began from; training keeps float32 parameters."""
    return load_model(path, mesh, "float32")[1]


_LOADERS: dict[str, Callable[[Path, Mesh | None, str | None], tuple[ModelConfig, Params]]] = {
    "model": model_dir.load,
    "run": _load_run,
    "hf": _load_hf,
}
