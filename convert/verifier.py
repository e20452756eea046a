"""Verification: a converted model held against its source, file by file, tensor by tensor, and by what it computes."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from convert import layerwise, layout, model_dir, reference, shards, source, streaming
from convert.checkpoint_files import CheckpointFiles, load_config, read_json
from convert.importer import Report
from convert.parameters import CheckpointParameters, Parameters, StoredParameters
from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig

#: Largest difference of two float32 computations of the same logits, relative to the largest logit.
TOLERANCE = 1e-4

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str  #: what was compared
    found: str  #: in the converted model
    expected: str  #: in the source
    equal: bool


def verify(
    origin: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    report: Report = lambda done, total: None,
) -> list[Finding]:
    """Compares names, shapes, dtypes, bytes, checksums, parameter count and logits.

    Args:
      origin: the checkpoint in Hugging Face layout.
      converted: the model folder made from it, or a checkpoint exported again.
      report: told of the progress in bytes of the source.

    Returns:
      One finding per check, with one more for each of the first few tensors that differ.

    Raises:
      UserError: one of the two is no checkpoint, or is damaged.
    """
    folder, other = pathlib.Path(origin), pathlib.Path(converted)
    config, files = load_config(folder), CheckpointFiles.open(folder)
    files.check(config)
    found_config, found = _open(other)
    kinds = found.shapes()
    dtype = np.dtype(next(iter(kinds.values())).dtype) if kinds else np.dtype(np.float32)
    findings = [_equal("configuration", _differences(found_config, config), "no field differs")]
    structure = _structure(kinds, layout.flat_table(config))
    findings += structure
    findings.append(_dtypes(other, kinds, files))
    digests: dict[str, str] = {}
    different = _compare(files, config, found if all(f.equal for f in structure) else None, dtype, digests, report)
    findings += _tensors(len(files), different)
    if source.kind_of(other) == "model":
        findings += _checksums(folder, other, digests)
    if all(finding.equal for finding in findings[: len(structure) + 1]):
        findings.append(_logits(folder, files, config, found, dtype))
    return findings


def _open(folder: pathlib.Path) -> tuple[ModelConfig, Parameters]:
    """The converted model as it is, whether it fits its config.json or not."""
    kind = source.kind_of(folder)
    if kind == "run":
        raise UserError(
            f"--converted {folder} is a run directory, whose training changed the parameters; verify what it began from"
        )
    config = load_config(folder)
    if kind == "hf":
        return config, CheckpointParameters(CheckpointFiles.open(folder), config)
    model_dir.read_manifest(folder)
    return config, StoredParameters(folder / model_dir.PARAMS)


def _equal(check: str, found: str, expected: str) -> Finding:
    return Finding(check, found, expected, found == expected)


def _differences(found: ModelConfig, expected: ModelConfig) -> str:
    pairs = [(f.name, getattr(found, f.name), getattr(expected, f.name)) for f in dataclasses.fields(found)]
    return ", ".join(f"{name} {a} for {b}" for name, a, b in pairs if a != b) or "no field differs"


def _structure(kinds: Mapping[str, jax.ShapeDtypeStruct], table: Mapping[str, layout.ParamSpec]) -> list[Finding]:
    """Names, shapes and the parameter count."""
    missing, extra = [p for p in table if p not in kinds], [p for p in kinds if p not in table]
    names = ", ".join([*(f"{p} missing" for p in missing), *(f"{p} unknown" for p in extra)])
    reshaped = [
        f"{p} {kinds[p].shape} for {table[p].shape}" for p in table if p in kinds and kinds[p].shape != table[p].shape
    ]
    return [
        _equal("names", names or f"{len(kinds)} parameters", f"{len(table)} parameters"),
        _equal("shapes", ", ".join(reshaped[:_SHOWN]) or "all equal", "all equal"),
        _equal(
            "parameter count",
            f"{sum(math.prod(kind.shape) for kind in kinds.values()):,}",
            f"{sum(math.prod(spec.shape) for spec in table.values()):,}",
        ),
    ]


def _dtypes(folder: pathlib.Path, kinds: Mapping[str, jax.ShapeDtypeStruct], files: CheckpointFiles) -> Finding:
    """The dtype is the source's, or the one that the import was asked for."""
    found = sorted({str(np.dtype(kind.dtype)) for kind in kinds.values()})
    expected = sorted({shard.entries[name].dtype for name, shard in files.homes.items()})
    if source.kind_of(folder) == "model":
        manifest = model_dir.read_manifest(folder)
        if manifest["source_dtypes"] == expected != [manifest["dtype"]]:
            note = f" (converted at import from {', '.join(expected)})"
            return _equal("dtypes", ", ".join(found) + note, manifest["dtype"] + note)
    return _equal("dtypes", ", ".join(found), ", ".join(expected))


def _compare(
    files: CheckpointFiles,
    config: ModelConfig,
    found: Parameters | None,
    dtype: np.dtype,
    digests: dict[str, str],
    report: Report,
) -> list[str] | None:
    """Names of the tensors whose bytes differ (None where they cannot be compared); fills in the files' sha256."""
    places, done, different = layout.places(config), 0, []
    with ThreadPoolExecutor(1) as background:
        for shard in files.shards:
            digest, incomplete = shard.start_digest()
            for name, entry in shard.entries.items():
                equal = True
                for rows in layout.slabs(entry.shape, streaming.chunk(entry.shape[0]), entry.itemsize):
                    values = shard.read(name, rows)
                    hashed = background.submit(digest.update, layout.bits(values)) if incomplete else None
                    if found is not None:
                        equal &= _same(values, found.read(places[name], rows), places[name].transpose, dtype)
                    if hashed is not None:
                        hashed.result()
                    done += values.nbytes
                    report(done, files.nbytes)
                if not equal:
                    different.append(name)
            digests[shard.path.name] = digest.hexdigest()
    return None if found is None else different


def _same(values: np.ndarray, found: np.ndarray, transpose: bool, dtype: np.dtype) -> bool:
    expected = layout.turned(values.astype(dtype, copy=False), transpose)
    return np.array_equal(layout.bits(found), layout.bits(expected))


def _tensors(count: int, different: list[str] | None) -> list[Finding]:
    if different is None:
        return [Finding("tensor bytes", "not compared", f"{count} tensors equal", False)]
    summary = _equal("tensor bytes", f"{count - len(different)} tensors equal", f"{count} tensors equal")
    return [summary, *(Finding(f"  {name}", "different", "equal", False) for name in different[:_SHOWN])]


def _checksums(folder: pathlib.Path, converted: pathlib.Path, digests: Mapping[str, str]) -> list[Finding]:
    """The source files are those that were imported."""
    recorded = {entry["name"]: entry["sha256"] for entry in model_dir.read_manifest(converted)["files"]}
    changed = []
    for name, digest in recorded.items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{name} missing")
        elif (digests.get(name) or shards.file_digest(path).hexdigest()) != digest:
            changed.append(f"{name} changed")
    unknown = [f"{name} not in the manifest" for name in digests if name not in recorded]
    text = ", ".join((changed + unknown)[:_SHOWN])
    return [_equal("source sha256", text or f"{len(recorded)} files as imported", f"{len(recorded)} files as imported")]


def _logits(
    folder: pathlib.Path, files: CheckpointFiles, config: ModelConfig, found: Parameters, dtype: np.dtype
) -> Finding:
    """Both forward passes on the same rows: the reference on the source, the project's on the converted model."""
    tokens = prompts(config)

    def read(name: str, rows: slice) -> np.ndarray:
        return files.read(name, rows).astype(dtype, copy=False)

    wanted = reference.logits(read, files.__contains__, read_json(folder / "config.json"), tokens)
    got = layerwise.logits(found, config, tokens)
    worst, largest = float(np.max(np.abs(got - wanted))), float(np.max(np.abs(wanted)))
    limit = TOLERANCE * largest
    return Finding("logits", f"largest difference {worst:.2e}", f"at most {limit:.2e}", bool(worst <= limit))


def prompts(config: ModelConfig) -> np.ndarray:
    """Fixed rows (2, 24) of ids, the second half of each masked but for a few."""
    length = min(24, config.max_sequence_length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, length), dtype=np.int64)
    tokens[:, length // 2 :: 2] = config.mask_token_id
    tokens[1, -length // 4 :] = config.mask_token_id
    return tokens.astype(np.int32)
