"""Seconds and share of the peak of one IGPO update: LoRA against full fine-tuning, and each remat policy, in one run.

    python benchmarks/update.py [--rounds 3] [--trained lora full] [--remat full context] [--output FILE.json]
    python benchmarks/update.py --device gpu --trained lora --remat full context

Variants take turns, so that whatever else the machine does meets all of them; ratios are to the first one. Model FLOPs
are those of ``models/flops.py::update_flops``: recomputation does not count, attention is not halved.

On a CPU: 8 layers 512 wide with LLaDA's 126,464 tokens, 8 completions of 64 + 64, float32. On a GPU: LLaDA-8B in
bfloat16 over float32 master weights, 64 completions of 256 + 256 in 8 micro-batches; with its moments full fine-tuning
needs more than one such GPU.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.small_model import SMALL
from igpo_jax.models import llada
from igpo_jax.models.config import REMAT
from igpo_jax.models.flops import update_flops
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel import mesh as meshes
from igpo_jax.parallel import sharding
from igpo_jax.parallel.devices import device_of
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import optimizers, state
from igpo_jax.training.rl import RlSettings, make_rl_step


@dataclasses.dataclass(frozen=True)
class Task:
    """What is updated, from how many completions."""

    config: llada.ModelConfig
    dtype: str
    rows: int
    prompt: int
    length: int
    micro_batches: int
    lora: LoraSettings


TASKS = {
    "cpu": Task(SMALL, "float32", 8, 64, 64, 1, LoraSettings(rank=16, alpha=8.0)),
    "gpu": Task(llada.ModelConfig(), "bfloat16", 64, 256, 256, 8, LoraSettings(rank=128, alpha=64.0)),
}
TRAINED = ("lora", "full")

Update = Callable[[], None]


def main() -> None:
    """Times every variant in turns, prints the ratios and writes them where asked."""
    options = _options()
    task = TASKS[options.device]
    if options.layers:
        task = dataclasses.replace(task, config=dataclasses.replace(task.config, n_layers=options.layers))
    if options.device == "cpu":
        meshes.force_cpu_devices(meshes.cpu_device_count([task.rows], meshes.usable_cores()))
    load = os.getloadavg()
    variants = {(kind, remat): _update(task, kind, remat) for kind in options.trained for remat in options.remat}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in variants}
    for turn in range(options.rounds + 1):  # the first one compiles
        for name, update in variants.items():
            start = time.perf_counter()
            update()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    results = [_result(task, *name, times, seconds) for name, times in seconds.items()]
    report = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": len(jax.devices())}
    report |= {"load": (load, os.getloadavg()), "task": dataclasses.asdict(task), "results": results}
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=TASKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="timed updates of each variant")
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--remat", nargs="+", choices=REMAT, default=["full", "context"])
    parser.add_argument("--layers", type=int, default=0, help="other than the task's, to try the script out")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures as JSON")
    return parser.parse_args()


def _update(task: Task, trained: str, remat: str) -> Update:
    """One update of a fresh model on drawn completions; each call goes on from the last one's state."""
    model = llada.Model(task.config, llada.Compute(dtype=task.dtype, remat=remat))
    mesh = meshes.make_mesh(meshes.MeshSettings(data=1, fsdp=-1))
    adapters = task.lora if trained == "lora" else LoraSettings()
    rollout = RolloutSettings(groups=1, group_size=task.rows, rows_per_program=task.rows)
    settings = RlSettings(micro_batches=task.micro_batches, rollout=rollout, lora=adapters)
    optimizer = optimizers.make_optimizer(settings.optimizer, settings.updates)
    schedule = optimizers.make_schedule(settings.optimizer, settings.updates)
    with jax.set_mesh(mesh):
        make = jax.jit(llada.init, static_argnums=1, out_shardings=llada.shardings(task.config, mesh))
        params = make(jax.random.key(0), task.config)
        held = [state.create(params, adapters, task.config, optimizer, jax.random.key(1), mesh)]
        del params
        batch = jax.tree.map(lambda x: sharding.shard_batch((x,), mesh)[0], _batch(task))
    step = make_rl_step(model, settings, optimizer, schedule)

    def update() -> None:
        with jax.set_mesh(mesh):
            held[0], metrics = step(held[0], batch)
            jax.block_until_ready(metrics)

    return update


def _batch(task: Task) -> UpdateBatch:
    """Drawn completions without hints, on the host."""
    rng = np.random.default_rng(0)
    shape, rows = (task.rows, task.length), task.rows
    whole = np.ones(shape, bool)
    rollout = RolloutBatch(
        prompt_tokens=rng.integers(0, 100_000, (rows, task.prompt)).astype(np.int32),
        prompt_mask=np.ones((rows, task.prompt), bool),
        completion_tokens=rng.integers(0, 100_000, shape).astype(np.int32),
        completion_mask=whole,
        hint_mask=~whole,
        rewards=np.zeros(rows, np.float32),
        correct=np.zeros(rows, bool),
        advantages=rng.normal(size=rows).astype(np.float32),
        group_id=np.zeros(rows, np.int32),
    )
    logp = np.full(shape, -np.log(task.config.vocab_size), np.float32)
    return UpdateBatch(rollout, old_logp=logp, ref_logp=logp, kept=whole, kl_weight=np.ones(rows, np.float32))


def _result(task: Task, trained: str, remat: str, times: list[float], all_times: dict[Any, list[float]]) -> dict:
    """One variant's figures, printed: its median, the ratio of the first variant's to it, and the share of the peak."""
    first = next(iter(all_times.values()))
    ratios = sorted(a / b for a, b in zip(first, times, strict=True))
    middle = float(np.median(times))
    adapters = task.lora if trained == "lora" else None
    flops = update_flops(task.config, task.rows, task.prompt + task.length, task.length, adapters)
    result = {"trained": trained, "remat": remat, "seconds": times, "ratios": ratios, "model_flops": flops}
    line = f"{trained:5s} {remat:12s} {middle:8.3f} s an update, {np.median(ratios):5.2f}x as fast as the first"
    line += f" ({ratios[0]:.2f} to {ratios[-1]:.2f}), {flops / middle / 1e9:,.0f} model GFLOP/s"
    devices = jax.devices()
    if (device := device_of(devices[0].device_kind)) is not None:
        result["mfu"] = flops / middle / len(devices) / device.peak_bf16_flops
        line += f", {result['mfu']:.1%} of the peak of {len(devices)} x {device.name} (update MFU)"
    print(line)
    return result


if __name__ == "__main__":
    main()
