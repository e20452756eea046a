"""What a batch pays for rows that need fewer denoising forwards than others, by policy: in counts and in seconds.

    python benchmarks/elastic.py [--output FILE.json]
    python benchmarks/elastic.py --counts-only --rows 512 --rows-per-program 64 --length 256 --steps 128

The counts follow from the schedule; without --counts-only every policy also runs, must come to the same counts and the
same tokens, and is timed.

Policies: "lockstep" fills programs in the order of arrival, all rows of which work on the same block; in "own pace"
every row goes on to its next block when it is through with its own (``sampler.pace``); "grouped" does so with rows of
like need together, as rollouts do; "compacted" is lockstep whose unfinished rows move into a smaller program between
blocks.

Workloads: "hinted" rows have 20 to 60% of the chunks of a solution as hints; "short" ones have no hints and end in EOS
behind 20 to 100% of the canvas; "hinted short" are both. A fresh model writes no EOS of its own, so what stands behind
the block of EOS that ends such a row is given to it from the start, which makes the forwards those of a model that ends
there. "grouped" cannot know such ends beforehand and sorts by hints alone.

A row-forward is one row in one forward. Needed are those in which the row itself reveals something.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from igpo_jax.diffusion import denoise, noise, schedule
from igpo_jax.diffusion.compaction import denoise_compacted
from igpo_jax.models import llada
from igpo_jax.rl import hints, packing

WORKLOADS = ("hinted", "short", "hinted short")
POLICIES = ("lockstep", "own pace", "grouped", "compacted")

_SETTINGS = ("rows", "rows_per_program", "prompt", "length", "steps", "block_length", "rounds")

CONFIG = llada.ModelConfig(
    d_model=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=384,
    vocab_size=512,
    embedding_size=512,
    max_sequence_length=1024,
    mask_token_id=510,
    eos_token_id=511,
    pad_token_id=511,
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Requests of one workload."""

    prompts: np.ndarray  # (R, P) int32
    canvases: np.ndarray  # (R, C) int32, -1 where the model writes
    foreseen: np.ndarray  # (R,) forwards by which "grouped" may sort: those that the hints leave


def main() -> None:
    """Runs every policy on every workload and prints a line for each."""
    options = _options()
    sampler = denoise.Sampler(options.length, options.steps, options.block_length or options.length // 8, 1.2)
    policy = llada.Policy(jax.jit(llada.init, static_argnums=1)(jax.random.key(0), CONFIG))
    report: dict[str, Any] = {"settings": {name: vars(options)[name] for name in _SETTINGS}, "jax": jax.__version__}
    report |= {"load_before": os.getloadavg(), "results": []}
    print(
        f"{'workload':13s} {'policy':10s} {'needed':>7s} {'paid':>7s} {'ratio':>6s} {'seconds':>8s}  a row needs, pays"
    )
    for workload in WORKLOADS:
        rows = _rows(workload, options, sampler)
        tokens = {}
        for name in POLICIES:
            result = _counts(name, sampler, rows, options.rows_per_program)
            if not options.counts_only:
                measured, tokens[name] = _measure(name, policy, sampler, rows, options)
                assert measured.items() >= result.items(), "the schedule promised other counts"
                assert np.array_equal(tokens[name], tokens["lockstep"]), "a policy changed a token"
                result = measured
            report["results"].append({"workload": workload, "policy": name} | result)
            _print_line(workload, name, result, len(rows.prompts))
    report["load_after"] = os.getloadavg()
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="a multiple of --rows-per-program")
    parser.add_argument("--rows-per-program", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--length", type=int, default=128, help="tokens of the canvas")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--block-length", type=int, default=0, help="0: an eighth of the canvas")
    parser.add_argument("--counts-only", action="store_true", help="run nothing")
    parser.add_argument("--rounds", type=int, default=1, help="timed runs; the fastest counts")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.rows % options.rows_per_program:
        parser.error(f"--rows is {options.rows}, expected a multiple of --rows-per-program {options.rows_per_program}")
    return options


def _rows(workload: str, options: argparse.Namespace, sampler: denoise.Sampler) -> Rows:
    rng = np.random.default_rng(0)
    count, length = options.rows, options.length
    canvases = np.full((count, length), -1, np.int32)
    ends = rng.integers(length // 5, length + 1, count) if "short" in workload else np.full(count, length)
    if "hinted" in workload:
        settings = hints.HintSettings()
        ratios = hints.draw_ratios(rng, count, settings)
        for row, (ratio, end) in enumerate(zip(ratios, ends, strict=True)):
            trace = rng.integers(0, 500, end).astype(np.int32)
            placed = hints.place_hints(trace, np.zeros(end, bool), length, float(ratio), rng, settings)
            canvases[row] = placed.canvas
    foreseen = packing.forwards_needed(canvases < 0, sampler.block_length, sampler.steps)
    # The exit needs a block that is all EOS: it ends behind the first whole block after the answer.
    exits = (-(-ends // sampler.block_length) + 1) * sampler.block_length
    behind = (np.arange(length) >= exits[:, None]) & (canvases < 0)
    canvases[behind] = CONFIG.eos_token_id
    prompts = rng.integers(0, 500, (count, options.prompt)).astype(np.int32)
    return Rows(prompts, canvases, foreseen)


def _rows_apart(name: str) -> bool:
    """Whether the rows of a program may be in different blocks."""
    return name in ("own pace", "grouped")


def _programs(name: str, rows: Rows, largest: int) -> list[np.ndarray]:
    """Row numbers of each program."""
    order = np.arange(len(rows.prompts))
    if name == "grouped":
        packs = packing.pack(rows.foreseen.tolist(), (largest,))
        order = np.concatenate([np.asarray(pack.rows) for pack in packs])
    return np.split(order, len(order) // largest)


def _counts(name: str, sampler: denoise.Sampler, rows: Rows, largest: int) -> dict[str, int]:
    """Row-forwards needed and paid, by the schedule."""
    open_masks = (rows.canvases < 0).reshape(len(rows.canvases), sampler.blocks, -1).sum(axis=2)
    needs = schedule.forwards_needed(open_masks, sampler.steps_per_block)
    sizes, paid = packing.bucket_sizes(largest, 1), 0
    for part in _programs(name, rows, largest):
        size = len(part)
        if _rows_apart(name):
            paid += size * int(needs[part].sum(axis=1).max())
            continue
        for block in range(sampler.blocks):
            active = int(needs[part, block:].any(axis=1).sum())
            if name == "compacted" and active:
                size = next((one for one in sizes if active <= one < size), size)
            paid += size * int(needs[part, block].max())
    return {"needed": int(needs.sum()), "paid": paid}


def _measure(
    name: str, policy: llada.Policy, sampler: denoise.Sampler, rows: Rows, options: argparse.Namespace
) -> tuple[dict[str, Any], np.ndarray]:
    """Counts and the fastest time of one policy, and the tokens in the order of arrival."""
    programs = _programs(name, rows, options.rows_per_program)
    run = _compacted if name == "compacted" else _whole
    sampler = dataclasses.replace(sampler, pace="row" if _rows_apart(name) else "block")
    times = []
    for timed in range(options.rounds + 1):  # the first one compiles
        tokens = np.empty_like(rows.canvases)
        needed, paid, start = 0, 0, time.perf_counter()
        for part in programs:
            tokens[part], part_needed, part_paid = run(policy, sampler, rows, part)
            needed, paid = needed + part_needed, paid + part_paid
        if timed:
            times.append(time.perf_counter() - start)
    return {"needed": needed, "paid": paid, "seconds": min(times)}, tokens


def _source(part: np.ndarray) -> noise.KeyNoise:
    return noise.KeyNoise(noise.row_keys(jax.random.key(1), "elastic", 0, part))


def _whole(policy: llada.Policy, sampler: denoise.Sampler, rows: Rows, part: np.ndarray) -> tuple[np.ndarray, int, int]:
    prompts = rows.prompts[part]
    valid = np.ones_like(prompts, dtype=bool)
    model = llada.Model(CONFIG)
    done = denoise.denoise(policy, model, sampler, prompts, valid, _source(part), hints=rows.canvases[part])
    return np.asarray(done.tokens), int(done.steps_needed.sum()), len(part) * int(done.forwards)


def _compacted(
    policy: llada.Policy, sampler: denoise.Sampler, rows: Rows, part: np.ndarray
) -> tuple[np.ndarray, int, int]:
    prompts = rows.prompts[part]
    sizes = packing.bucket_sizes(len(part), 1)
    valid = np.ones_like(prompts, dtype=bool)
    model = llada.Model(CONFIG)
    done = denoise_compacted(policy, model, sampler, prompts, valid, _source(part), sizes, hints=rows.canvases[part])
    return done.denoised.tokens, int(done.denoised.steps_needed.sum()), done.row_forwards_paid


def _print_line(workload: str, name: str, result: dict[str, Any], rows: int) -> None:
    needed, paid = result["needed"], result["paid"]
    seconds = f"{result['seconds']:8.1f}" if "seconds" in result else f"{'-':>8s}"
    each = f"{needed / rows:.1f}, {paid / rows:.1f}"
    print(f"{workload:13s} {name:10s} {needed:7d} {paid:7d} {paid / needed:6.3f} {seconds}  {each}")


if __name__ == "__main__":
    main()
