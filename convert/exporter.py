"""Export: a model folder or a training run back to Hugging Face layout, or a run's adapters to PEFT's."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert import layout, parameters, runs, source, staging, streaming, tokenizer_files, writing
from convert.importer import GENERATION_CONFIG, Report, write_config
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models import lora
from igpo_jax.models.config import DTYPES, ModelConfig

#: Largest file, as Hugging Face's own tools cut.
SHARD_BYTES = 5 * 10**9

Path = str | os.PathLike[str]


def export_model(
    folder: Path,
    output: Path,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Writes a model in Hugging Face layout: what came from there goes back bit for bit.

    Args:
      folder: a model folder, a run directory (newest stage, adapters merged), or a checkpoint to re-shard.
      output: folder to make; it appears whole or not at all.
      dtype: "float32" or "bfloat16" to convert to, None to keep (a run keeps float32).
      shard_bytes: largest weight file.
      report: told of the progress in bytes.

    Returns:
      "tensors", "bytes", "files" and "dtype" of what was written.

    Raises:
      UserError: the source is damaged or is no model, the output exists or has no space.
    """
    if dtype is not None:
        check_choice("--dtype", dtype, DTYPES)
    origin = pathlib.Path(folder)
    config, values = source.open_parameters(origin)
    target = np.dtype(dtype) if dtype else parameters.check(values, config, str(origin))
    tensors = {name: writing.Tensor(place.shape, target) for name, place in layout.places(config).items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with staging.staged(output, total) as partial:
        read = _reader(values, config, target, total, report)
        writing.write_checkpoint(partial, tensors, read, shard_bytes)
        files = len(list(partial.glob("*.safetensors")))
        _write_small_files(origin, partial, config, target)
    return {"tensors": len(tensors), "bytes": total, "files": files, "dtype": str(target)}


def _reader(
    values: parameters.Parameters, config: ModelConfig, dtype: np.dtype, total: int, report: Report
) -> writing.Read:
    """Reads a tensor by its checkpoint name, in the checkpoint's layout."""
    places, done = layout.places(config), 0

    def read(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        place = places[name]
        # Of the parameters of a block a layer is read whole: it is small, and adapters are merged once.
        whole = [slice(0, place.shape[0])] if place.layer is not None else None
        for rows in whole or layout.slabs(place.shape, streaming.chunk(place.shape[0]), dtype.itemsize):
            part = values.read(place, rows).astype(dtype, copy=False)
            done += part.nbytes
            report(done, total)
            yield layout.turned(part, place.transpose)

    return read


def _write_small_files(origin: pathlib.Path, target: pathlib.Path, config: ModelConfig, dtype: np.dtype) -> None:
    """Tokenizer and settings; config.json comes last, as it makes the folder a checkpoint."""
    tokenizer_files.copy(source.tokenizer_folder(origin) or origin, target)
    if (origin / GENERATION_CONFIG).is_file():
        shutil.copyfile(origin / GENERATION_CONFIG, target / GENERATION_CONFIG)
    if source.kind_of(origin) == "run":
        values = config.to_hf() | {"torch_dtype": str(dtype)}
        (target / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        write_config(origin / "config.json", target / "config.json", dtype)


def export_adapters(folder: Path, output: Path) -> dict[str, Any]:
    """Writes the adapters of a run's newest stage in PEFT's layout, under LLaDA's own module names.

    Args:
      folder: the run directory of a stage trained with LoRA.
      output: folder to make; it appears whole or not at all.

    Returns:
      "tensors", "bytes" and "targets" of what was written.

    Raises:
      UserError: the folder is no run, or its newest stage has no adapters.
    """
    if source.kind_of(folder) != "run":
        raise UserError(
            f"--adapters-only: {folder} is not a run directory of igpo_jax.train, and only a run has adapters"
        )
    run = runs.Run(folder)
    stage = run.newest_stage()
    settings = run.lora_of(stage)
    if not settings.rank:
        raise UserError(
            f"--adapters-only: stage '{stage}' of {folder} trained all parameters, not adapters; export it without "
            "--adapters-only"
        )
    found = _adapter_tensors(run.adapters(stage), settings, run.config)
    tensors = {name: writing.Tensor(values.shape, values.dtype) for name, values in found.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with staging.staged(output, total) as partial:
        writing.write_file(partial / "adapter_model.safetensors", tensors, lambda name: [found[name]])
        values = _adapter_config(settings, run.start_checkpoint)
        (partial / "adapter_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return {"tensors": len(tensors), "bytes": total, "targets": list(settings.layers)}


def _adapter_tensors(
    adapters: lora.Adapters, settings: lora.LoraSettings, config: ModelConfig
) -> Mapping[str, np.ndarray]:
    """Every adapter matrix by its name in PEFT's files, (out, in) as PyTorch stores them."""
    return {
        spec.hf_name.format(layer=layer): layout.turned(np.asarray(adapters.layers[name][part][layer]))
        for name, pair in lora.adapter_table(settings, config).items()
        for part, spec in pair.items()
        for layer in range(config.n_layers)
    }


def _adapter_config(settings: lora.LoraSettings, base: str) -> dict[str, Any]:
    """PEFT's description of the adapters.

    The layers are named by an expression for the whole path: by its last part alone, as in Llama's list, ``ff_out``
    would also mean the head, which has the same name.
    """
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base or None,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": rf"(?:.*\.)?blocks\.\d+\.(?:{'|'.join(settings.layers)})",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "task_type": None,
    }
