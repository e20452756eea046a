"""Peak memory and MB/s of import, export and verification on a random checkpoint of LLaDA-8B's shape.

    python benchmarks/conversion.py --dir DIR [--layers 32] [--keep]

Writes 16 GB of bfloat16 weights under DIR and needs three times that in all; everything is deleted at the end. Files
are dropped from the page cache before they are read, and each command runs in a process of its own, whose peak resident
memory is compared with the bound of three times the largest stacked tensor group plus 1 GiB.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from convert import layout, staging, writing
from igpo_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]

#: The published checkpoints of LLaDA 1.5 are cut into six files of about this size.
SHARD_BYTES = 2_900_000_000

#: Weights are taken from this many normal draws, from another place for every tensor; a prime, so that rows differ.
POOL = 4_194_301


def main() -> None:
    """Writes the checkpoint, runs the commands on it, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="folder to work in, made if missing")
    parser.add_argument("--layers", type=int, default=32, help="fewer make it smaller")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    options = parser.parse_args()
    config = ModelConfig(n_layers=options.layers)
    folder = options.dir / "conversion_benchmark"
    source, model, back = (folder / name for name in ("source", "model", "back"))
    try:
        start = time.perf_counter()
        total = write_checkpoint(source, config)
        print(f"{staging.gigabytes(total)} in {len(list(source.glob('*.safetensors')))} files", end=", ")
        print(f"written in {time.perf_counter() - start:.0f} s; memory bound {staging.gigabytes(bound(config))}")
        measure("import", total, bound(config), [source], "--source", source, "--output", model)
        measure("export", total, bound(config), [model], "--source", model, "--output", back)
        measure("verify", total, None, [source, model], "--source", source, "--converted", model)
        measure("verify", total, None, [source, back], "--source", source, "--converted", back)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(folder: pathlib.Path, config: ModelConfig) -> int:
    """Writes random weights in Hugging Face layout; returns the bytes of the tensors."""
    folder.mkdir(parents=True)
    dtype, places = np.dtype("bfloat16"), layout.places(config)
    tensors = {name: writing.Tensor(place.shape, dtype) for name, place in places.items()}
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    order = {name: number for number, name in enumerate(tensors)}

    def draw(name: str) -> Iterator[np.ndarray]:
        shape = tensors[name].shape
        scale = 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 1.0
        values = np.roll(pool * np.float32(scale), 7919 * order[name]).astype(dtype)
        for rows in layout.slabs(shape, 1, dtype.itemsize):
            yield np.resize(np.roll(values, -rows.start), (rows.stop - rows.start, *shape[1:]))

    writing.write_checkpoint(folder, tensors, draw, SHARD_BYTES)
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"torch_dtype": "bfloat16"}, indent=2))
    return sum(tensor.nbytes for tensor in tensors.values())


def bound(config: ModelConfig) -> int:
    """Three times the largest stacked tensor group, in bfloat16, plus 1 GiB."""
    return 3 * max(2 * math.prod(spec.shape) for spec in layout.flat_table(config).values()) + 2**30


def measure(command: str, total: int, limit: int | None, read: list[pathlib.Path], *arguments: object) -> None:
    """Runs one command from a cold page cache and prints its rate and its peak memory."""
    for folder in read:
        forget(folder)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "convert", command, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024
    verdict = "" if limit is None else f" ({peak / limit:.0%} of the bound)"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    print(
        f"{command}: exit {process.returncode}, {seconds:.0f} s, {total / seconds / 1e6:.0f} MB/s, "
        f"peak {staging.gigabytes(peak)}{verdict}; {last}",
        flush=True,
    )
    if command == "verify":
        print(output, flush=True)


def forget(folder: pathlib.Path) -> None:
    """Drops a folder's files from the page cache, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
