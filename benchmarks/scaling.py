"""Weak scaling from plans: what each device sends and at best takes on 8 to 256 devices, with its rows held constant.

Usage (needs pip install '.[plan-h100]', or '.[plan-tpu]' for --kind=v6e and v5e; minutes for each size):
  python benchmarks/scaling.py --kind=h100           # compiles the sizes that are missing, then prints and plots all
  python benchmarks/scaling.py --kind=h100 --show    # prints and plots what is there

Each size is a JSON file in benchmarks/results/plan, written when it is done: the command can be stopped and run again.
Everything is a roofline from compiled programs, nothing here was timed. Up to eight devices, a host of H100s is one
NVLink domain; beyond, the network adapters carry what leaves it.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from igpo_jax.errors import UserError
from igpo_jax.planning import record, report

FOLDER = pathlib.Path(__file__).parent / "results" / "plan"

#: Kind -> its slices of 8 to 256 devices.
SIZES = {
    "h100": ("1x8", "2x8", "4x8", "8x8", "16x8", "32x8"),
    "v6e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}

#: Rows of a device in every program, and the config whose other settings are taken.
ROWS = 8
CONFIG = {kind: f"configs/llada_8b/igpo.py:{kind}-64,lora" for kind in SIZES}


def devices(size: str) -> int:
    """8 for "1x8"."""
    outer, inner = size.split("x")
    return int(outer) * int(inner)


def path(kind: str, size: str) -> pathlib.Path:
    """Where the plan of a size is kept."""
    return FOLDER / f"scaling_{kind}_{devices(size)}.json"


def make(kind: str, size: str) -> None:
    """Compiles one size, in a process of its own: one group of eight completions for each device."""
    count = devices(size)
    changes = {
        "mesh.fsdp": count,
        "rl.rollout.groups": count * ROWS // 8,
        "rl.rollout.rows_per_program": count * ROWS,
        "evaluation.rows_per_program": count * ROWS,
        "rl.micro_batches": 1,
        "rl.score_batches": 1,
    }
    command = [sys.executable, "-m", "igpo_jax.plan", f"--config={CONFIG[kind]}", f"--topology={kind}:{size}", "--json"]
    command += [f"--config.{field}={value}" for field, value in changes.items()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
    try:
        record.write(done.stdout, path(kind, size))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def stored(kind: str) -> dict[int, Mapping[str, Any]]:
    """The plans that are there, by the number of devices."""
    return {devices(size): record.read(path(kind, size)) for size in SIZES[kind] if path(kind, size).exists()}


def received(program: Mapping[str, Any]) -> float:
    """GiB that one device takes in during one execution."""
    return sum(program["traffic"]["by_kind"].values()) / 2**30 if program["traffic"] else float("nan")


def rows(plans: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table: one line for each size and program."""
    found = [("devices, program", "GiB received", "compute s", "links s", "estimate s", "bound", "peak GiB")]
    for count, plan in plans.items():
        for program in plan["programs"]:
            links = program["traffic"]["seconds"] if program["traffic"] else float("nan")
            times = (program["compute_seconds"], links, program["seconds"])
            cells = [report.seconds(time) for time in times]
            peak = "-" if program["needed"] is None else f"{program['needed']:.1f}"
            found.append((f"{count:>3} {program['name']}", f"{received(program):,.1f}", *cells, program["bound"], peak))
    return found


def plot(plans: Mapping[int, Mapping[str, Any]], kind: str, target: pathlib.Path) -> None:
    """Estimated seconds of the update and of one denoising forward, with what computing and links take alone."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, (name, share, title) in zip(
        axes, (("update", 1.0, "one update"), ("rollout", 128.0, "one denoising forward")), strict=True
    ):
        found = {n: p for n, plan in plans.items() for p in plan["programs"] if p["name"] == name and p["traffic"]}
        axis.plot(list(found), [p["seconds"] / share for p in found.values()], "o-", label="estimate")
        axis.plot(list(found), [p["compute_seconds"] / share for p in found.values()], "--", label="compute alone")
        links = [p["traffic"]["seconds"] / share for p in found.values()]
        axis.plot(list(found), links, ":", marker="s", label="links alone")
        axis.set(xscale="log", xlabel=f"{kind} devices, {ROWS} rows each", ylabel="seconds", title=title)
        axis.set_xticks(list(found), [str(n) for n in found])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main() -> None:
    """Makes what is missing, then prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="h100", choices=list(SIZES), help="what to scale over")
    parser.add_argument("--show", action="store_true", help="print and plot what is there")
    chosen = parser.parse_args()
    for size in () if chosen.show else SIZES[chosen.kind]:
        if not path(chosen.kind, size).exists():
            print(f"making {chosen.kind}:{size}", file=sys.stderr, flush=True)
            make(chosen.kind, size)
    plans = stored(chosen.kind)
    if not plans:
        raise SystemExit(f"error: {FOLDER} has no plans of {chosen.kind}; run without --show first")
    print(report.table(rows(plans)))
    plot(plans, chosen.kind, FOLDER / f"scaling_{chosen.kind}.png")


if __name__ == "__main__":
    main()
