"""Denoising throughput against a PyTorch loop: equal weights, rows, lengths and steps, in one run, as ratios.

    python benchmarks/rollout.py [--rounds 3] [--opponent MODULE:FUNCTION] [--output FILE.json]
    python benchmarks/rollout.py --device gpu

Both sides take turns, so that whatever else the machine does meets both; a ratio belongs to one pair of turns. The
opponent is benchmarks/torch_llada.py, which has to reproduce the golden trajectories first, or your copy of LLaDA's
``generate.py`` (``--opponent generate:generate``, with its folder on PYTHONPATH), called with (model, prompt, steps=,
gen_length=, block_length=, temperature=, mask_id=), which has to reproduce those at temperature 0.

On a CPU: 8 layers 512 wide with LLaDA's 126,464 tokens, 8 rows of 64 + 64, 32 steps, blocks of 32, float32 on both
sides. On a GPU: LLaDA-8B in bfloat16, 64 rows of 256 + 256, 128 steps; the share of the device's peak is printed too.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import platform
import sys
import time
import types
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

try:
    import torch
except ModuleNotFoundError:
    sys.exit("error: this compares with PyTorch, which is not installed; run: pip install '.[torch]'")

from benchmarks import torch_llada
from benchmarks.small_model import SMALL
from igpo_jax.diffusion import denoise, noise
from igpo_jax.models import llada
from igpo_jax.models.flops import forward_flops
from igpo_jax.parallel import mesh as meshes
from igpo_jax.parallel import sharding
from igpo_jax.parallel.devices import device_of

Loop = Callable[[torch_llada.Llada, torch.Tensor, torch_llada.Settings, int], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """What both sides do."""

    config: llada.ModelConfig
    dtype: str
    rows: int
    prompt: int
    length: int
    steps: int
    block_length: int


TASKS = {
    "cpu": Task(SMALL, "float32", rows=8, prompt=64, length=64, steps=32, block_length=32),
    "gpu": Task(llada.ModelConfig(), "bfloat16", rows=64, prompt=256, length=256, steps=128, block_length=32),
}


def main() -> None:
    """Checks the opponent, times both sides in turns, prints the ratios and writes them where asked."""
    options = _options()
    # A small task, to try the script out: figures are those of the full one.
    task = TASKS[options.device]
    changes = {name: getattr(options, name) for name in ("rows", "steps") if getattr(options, name)}
    if options.layers:
        changes["config"] = dataclasses.replace(task.config, n_layers=options.layers)
    task = dataclasses.replace(task, **changes)
    if options.device == "cpu":
        cores = options.cores or meshes.usable_cores()
        meshes.force_cpu_devices(meshes.cpu_device_count([task.rows], cores))
        torch.set_num_threads(cores)
    opponent = _opponent(options.opponent)
    ours, theirs, prompts = _sides(task, opponent, options.device)
    report = {"task": _described(task), "machine": _machine(), "load_before": os.getloadavg(), "results": []}
    for temperature in options.temperatures:
        result = _duel(task, temperature, options.rounds, ours, theirs, prompts)
        report["results"].append(result)
    report["load_after"] = os.getloadavg()
    print(f"load of the machine: {report['load_before'][0]:.1f} before, {report['load_after'][0]:.1f} after")
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=TASKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of timed runs for each temperature")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.2])
    parser.add_argument("--opponent", default="", metavar="MODULE:FUNCTION", help="LLaDA's generate, or one like it")
    parser.add_argument("--cores", type=int, default=0, help="CPU devices and PyTorch threads; 0: all usable cores")
    parser.add_argument("--rows", type=int, default=0, help="other than the task's, to try the script out")
    parser.add_argument("--steps", type=int, default=0, help="other than the task's")
    parser.add_argument("--layers", type=int, default=0, help="other than the task's")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures as JSON")
    return parser.parse_args()


def _opponent(name: str) -> Loop:
    """The loop to time, once it has shown that it computes what the reference computes."""
    if not name:
        print(f"opponent: benchmarks/torch_llada.py, equal to the golden trajectories in {torch_llada.check()} steps")
        return torch_llada.denoise
    module, _, function = name.partition(":")
    generate = getattr(importlib.import_module(module), function)

    def loop(
        model: torch_llada.Llada, prompts: torch.Tensor, settings: torch_llada.Settings, mask_id: int
    ) -> torch.Tensor:
        def logits(tokens: torch.Tensor, *_: Any, **__: Any) -> types.SimpleNamespace:
            return types.SimpleNamespace(logits=model(tokens))

        logits.device = prompts.device  # type: ignore[attr-defined]  # the reference asks its model for it
        numbers = {"steps": settings.steps, "gen_length": settings.length, "block_length": settings.block_length}
        with torch.inference_mode():
            return generate(logits, prompts, **numbers, temperature=settings.temperature, mask_id=mask_id)

    model, mask_id = torch_llada.golden_model()
    cases = {name: case for name, case in torch_llada.golden_cases().items() if float(case["temperature"]) == 0}
    for case_name, case in cases.items():
        rows = loop(model, torch.from_numpy(case["prompt"]).long(), torch_llada.settings_of(case), mask_id)
        if not np.array_equal(rows.numpy(), case["final"]):
            raise SystemExit(f"error: --opponent {name} leaves the golden case {case_name}; nothing is timed")
    print(f"opponent: {name}, equal to {len(cases)} golden cases at temperature 0")
    return loop


def _sides(task: Task, opponent: Loop, device: str) -> tuple[Callable, Callable, np.ndarray]:
    """(temperature, round) -> tokens for this project and for the opponent, on the same weights and prompts."""
    model = llada.Model(task.config, llada.Compute(dtype=task.dtype))
    mesh = meshes.make_mesh()
    # Weights of a fresh model are as good as any: both loops do the same work whatever they say.
    make = jax.jit(llada.init, static_argnums=(1, 2), out_shardings=llada.shardings(task.config, mesh))
    policy = llada.Policy(make(jax.random.key(0), task.config, task.dtype))
    prompts = np.random.default_rng(0).integers(0, 100_000, (task.rows, task.prompt)).astype(np.int32)

    def ours(temperature: float, turn: int) -> np.ndarray:
        sampler = denoise.Sampler(task.length, task.steps, task.block_length, temperature, eos_exit="none")
        with jax.set_mesh(mesh):
            rows = sharding.shard_batch((prompts, np.ones_like(prompts, dtype=bool), np.arange(task.rows)), mesh)
            source = noise.KeyNoise(noise.row_keys(jax.random.key(turn), "benchmark", 0, rows[2]))
            return sharding.to_host(denoise.denoise(policy, model, sampler, *rows[:2], source).tokens)

    place = "cuda" if device == "gpu" else "cpu"
    config = task.config
    shape = torch_llada.Shape(config.n_heads, config.rope_theta, config.rms_norm_eps, config.mask_token_id)
    network = torch_llada.from_arrays(sharding.to_host(policy.params), shape, place, getattr(torch, task.dtype))
    torch_prompts = torch.from_numpy(prompts).long().to(place)

    def theirs(temperature: float, turn: int) -> np.ndarray:
        torch.manual_seed(turn)
        settings = torch_llada.Settings(task.length, task.steps, task.block_length, temperature)
        rows = opponent(network, torch_prompts, settings, config.mask_token_id)
        return rows[:, task.prompt :].cpu().numpy()

    return ours, theirs, prompts


def _duel(task: Task, temperature: float, rounds: int, ours: Callable, theirs: Callable, prompts: Any) -> dict:
    """Times both sides in turns and prints what came out."""
    start = time.perf_counter()
    mine = ours(temperature, 0)  # compiles
    compiled = time.perf_counter() - start
    seconds: dict[str, list[float]] = {"igpo_jax": [], "opponent": []}
    cpu: dict[str, list[float]] = {"igpo_jax": [], "opponent": []}
    for turn in range(1, rounds + 1):
        for name, side in (("igpo_jax", ours), ("opponent", theirs)):
            start, used = time.perf_counter(), time.process_time()
            tokens = side(temperature, turn)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    ratios = sorted(b / a for a, b in zip(seconds["igpo_jax"], seconds["opponent"], strict=True))
    result = {
        "temperature": temperature,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "first_run_seconds": compiled,
        "ratios": ratios,
    }
    best = min(seconds["igpo_jax"])
    print(f"temperature {temperature}: {_spread(ratios, 'x')} as fast as the opponent (min, median, max of {rounds})")
    for name, times in seconds.items():
        rate = task.rows * task.length / np.median(times)
        used = f"{np.median(cpu[name]):.1f} s of CPU time"
        print(f"  {name:9s} {_spread(sorted(times), ' s')} a rollout, {rate:.0f} tokens/s, {used}")
    if temperature == 0:
        result["equal_tokens"] = float(np.mean(mine == tokens))
        print(
            f"  equal tokens: {result['equal_tokens']:.1%} (a fresh model's best tokens may differ by rounding alone)"
        )
    if (device := device_of(jax.devices()[0].device_kind)) is not None:
        flops = task.steps * forward_flops(task.config, task.rows, task.prompt + task.length, task.block_length)
        result["mfu"] = flops / best / len(jax.devices()) / device.peak_bf16_flops
        print(f"  {result['mfu']:.1%} of the peak of {len(jax.devices())} x {device.name} (rollout MFU)")
    return result


def _spread(values: list[float], unit: str) -> str:
    return ", ".join(f"{value:.2f}{unit}" for value in (values[0], float(np.median(values)), values[-1]))


def _described(task: Task) -> dict[str, Any]:
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return fields | {"config": dataclasses.asdict(task.config)}


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "cores": meshes.usable_cores(),
        "torch_threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
