"""Import: a LLaDA checkpoint in Hugging Face layout becomes a model folder, read once and written piece by piece."""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from convert import layout, model_dir, shards, staging, streaming, tokenizer_files
from convert.checkpoint_files import CheckpointFiles, load_config, read_json
from igpo_jax import __version__
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models.config import DTYPES, ModelConfig
from igpo_jax.models.params import map_table, param_table

#: Called with the bytes done and the bytes in all.
Report = Callable[[int, int], None]

GENERATION_CONFIG = "generation_config.json"


def import_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dtype: str | None = None,
    origin: Mapping[str, str] | None = None,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Writes a checkpoint as a model folder, which appears whole or not at all.

    Tensors are read in the order of the files, one at a time; memory does not grow with the checkpoint.

    Args:
      source: folder with config.json, weights and, perhaps, tokenizer files.
      output: folder to make.
      dtype: "float32" or "bfloat16" to convert to, None to keep.
      origin: what the manifest calls the source; by default the folder.
      report: told of the progress.

    Returns:
      The manifest.

    Raises:
      UserError: the checkpoint is damaged, incomplete, of another architecture, or its tokenizer is another's; the
        output exists or has no space.
    """
    if dtype is not None:
        check_choice("--dtype", dtype, DTYPES)
    folder = pathlib.Path(source)
    config, files = load_config(folder), CheckpointFiles.open(folder)
    files.check(config)
    if tokenizer_files.present(folder):
        tokenizer_files.check(folder, config)
    target = np.dtype(dtype) if dtype else files.dtype()
    slots = _slots(config, target)
    leaves = jax.tree.leaves(slots)
    with staging.staged(output, sum(slot.nbytes for slot in leaves)) as partial:
        digests: dict[str, str] = {}
        _write(partial / model_dir.PARAMS, slots, _pieces(files, config, target, digests, report))
        _copy_small_files(folder, partial, target)
        manifest = {
            "format": model_dir.FORMAT,
            "converter": f"igpo_jax {__version__}",
            "source": dict(origin or {"folder": str(folder.absolute())}),
            "files": _checksums(folder, files, digests),
            "source_dtypes": sorted({shard.entries[name].dtype for name, shard in files.homes.items()}),
            "dtype": str(target),
            "tensors": len(files),
            "parameters": sum(math.prod(slot.shape) for slot in leaves),
        }
        # The manifest makes the folder a model, so it comes last.
        (partial / model_dir.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _slots(config: ModelConfig, dtype: np.dtype) -> dict[str, Any]:
    return map_table(lambda _, spec: streaming.Slot(spec.shape, dtype, spec.stacked), param_table(config))


def _write(path: pathlib.Path, slots: Any, pieces: Iterator[streaming.Piece]) -> None:
    try:
        streaming.write(path, slots, pieces)
    except UserError:
        raise
    except Exception as error:  # a full disk comes as OSError, or as what tensorstore makes of it
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path.parent} cannot be written ({lines[0][:200]}); check the free space and the permissions"
        ) from error


def _pieces(
    files: CheckpointFiles, config: ModelConfig, dtype: np.dtype, digests: dict[str, str], report: Report
) -> Iterator[streaming.Piece]:
    """Every tensor in the order of the files; fills ``digests`` with the files' sha256 on the way."""
    places, done = layout.places(config), 0
    with ThreadPoolExecutor(1) as background:
        for shard in files.shards:
            digest, incomplete = shard.start_digest()
            for name, entry in shard.entries.items():
                place = places[name]
                for rows in layout.slabs(entry.shape, streaming.chunk(entry.shape[0]), entry.itemsize):
                    values = shard.read(name, rows)
                    hashed = background.submit(digest.update, layout.bits(values)) if incomplete else None
                    turned = layout.turned(values.astype(dtype, copy=False), place.transpose)
                    yield streaming.Piece(place.path, place.index(rows), turned)
                    if hashed is not None:
                        hashed.result()
                    done += values.nbytes
                    report(done, files.nbytes)
            digests[shard.path.name] = digest.hexdigest()


def _copy_small_files(folder: pathlib.Path, target: pathlib.Path, dtype: np.dtype) -> None:
    write_config(folder / "config.json", target / "config.json", dtype)
    if (folder / GENERATION_CONFIG).is_file():
        shutil.copyfile(folder / GENERATION_CONFIG, target / GENERATION_CONFIG)
    tokenizer_files.copy(folder, target / "tokenizer")


def write_config(source: pathlib.Path, target: pathlib.Path, dtype: np.dtype) -> None:
    """Copies a config.json byte for byte, or with the new dtype where it names another."""
    values = read_json(source)
    changed = {name: str(dtype) for name in ("torch_dtype", "dtype") if values.get(name, str(dtype)) != str(dtype)}
    if changed:
        target.write_text(json.dumps(values | changed, indent=2) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _checksums(folder: pathlib.Path, files: CheckpointFiles, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Name, size and sha256 of every source file; weights were hashed while they were read."""
    others = [folder / "config.json", folder / GENERATION_CONFIG, *tokenizer_files.present(folder)]
    paths = [*files.paths, *(path for path in others if path.is_file())]
    return [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": digests.get(path.name) or shards.file_digest(path).hexdigest(),
        }
        for path in paths
    ]


def tokenizer_note(folder: str | os.PathLike[str]) -> str:
    """One line on the tokenizer of a model folder, or on the lack of one."""
    path = pathlib.Path(folder)
    tokens = path / "tokenizer"
    if not tokenizer_files.present(tokens):
        return "notice: the source has no tokenizer files; commands on text will ask for them, those on tokens will not"
    config = load_config(path)
    return tokenizer_files.describe(tokens, tokenizer_files.check(tokens, config), config)
