"""Weak scaling from plans: what each device sends and at best takes on 8 to 256 devices, with its rows held constant.

Usage (needs pip install '.[plan-h100]', or '.[plan-tpu]' for --kind=v6e and v5e; minutes for each size):
  python benchmarks/scaling.py --kind=h100 --rows 8 4   # compiles what is missing, then prints and plots all
  python benchmarks/scaling.py --kind=h100 --rows 8 4 --show    # prints and plots what is there

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

#: The config whose other settings are taken.
CONFIG = {kind: f"configs/llada_8b/igpo.py:{kind}-64,lora" for kind in SIZES}


def devices(size: str) -> int:
    """8 for "1x8"."""
    outer, inner = size.split("x")
    return int(outer) * int(inner)


def path(kind: str, size: str, rows: int) -> pathlib.Path:
    """Where the plan of a size is kept."""
    return FOLDER / f"scaling_{kind}_{devices(size)}x{rows}.json"


def make(kind: str, size: str, rows: int) -> None:
    """Compiles one size, in a process of its own: ``rows`` completions for each device in every program."""
    count = devices(size)
    changes = {
        "mesh.fsdp": count,
        "rl.rollout.groups": count * rows // 8,
        "rl.rollout.rows_per_program": count * rows,
        "evaluation.rows_per_program": count * rows,
        "rl.micro_batches": 1,
        "rl.score_batches": 1,
    }
    command = [sys.executable, "-m", "igpo_jax.plan", f"--config={CONFIG[kind]}", f"--topology={kind}:{size}", "--json"]
    command += [f"--config.{field}={value}" for field, value in changes.items()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
    try:
        record.write(done.stdout, path(kind, size, rows))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def stored(kind: str, rows: int) -> dict[int, Mapping[str, Any]]:
    """The plans that are there, by the number of devices."""
    paths = {devices(size): path(kind, size, rows) for size in SIZES[kind]}
    return {count: record.read(found) for count, found in paths.items() if found.exists()}


def received(program: Mapping[str, Any]) -> float:
    """GiB that one device takes in during one execution."""
    return sum(program["traffic"]["by_kind"].values()) / 2**30 if program["traffic"] else float("nan")


def table(plans: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """One line for each number of rows, size and program."""
    found = [("rows", "devices, program", "GiB received", "compute s", "links s", "estimate s", "bound", "peak GiB")]
    for rows, sizes in plans.items():
        for count, plan in sizes.items():
            found += [(str(rows), f"{count:>3} {program['name']}", *_cells(program)) for program in plan["programs"]]
    return found


def _cells(program: Mapping[str, Any]) -> tuple[str, ...]:
    links = program["traffic"]["seconds"] if program["traffic"] else float("nan")
    times = (report.seconds(time) for time in (program["compute_seconds"], links, program["seconds"]))
    peak = "-" if program["needed"] is None else f"{program['needed']:.1f}"
    return f"{received(program):,.1f}", *times, program["bound"], peak


def plot(plans: Mapping[int, Mapping[int, Mapping[str, Any]]], kind: str, target: pathlib.Path) -> None:
    """Estimated seconds of the update and of one denoising forward, with what computing and links take alone."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    panels = (("update", 1.0, "one update"), ("rollout", 128.0, "one denoising forward"))
    for axis, (name, share, title) in zip(axes, panels, strict=True):
        for colour, (rows, sizes) in enumerate(plans.items()):
            found = {n: p for n, plan in sizes.items() for p in plan["programs"] if p["name"] == name and p["traffic"]}
            style = {"color": f"C{colour}"}
            axis.plot(list(found), [p["seconds"] / share for p in found.values()], "o-", label=f"{rows} rows", **style)
            axis.plot(list(found), [p["compute_seconds"] / share for p in found.values()], "--", **style)
            axis.plot(list(found), [p["traffic"]["seconds"] / share for p in found.values()], ":", **style)
            axis.set_xscale("log")
            axis.set_xticks(list(found), [str(n) for n in found])
        axis.set(xlabel=f"{kind} devices", ylabel="seconds (dashed: compute, dotted: links)", title=title)
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, title="on each device")
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main() -> None:
    """Makes what is missing, then prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="h100", choices=list(SIZES), help="what to scale over")
    parser.add_argument("--rows", nargs="+", type=int, default=[8], help="completions of a device in every program")
    parser.add_argument("--show", action="store_true", help="print and plot what is there")
    chosen = parser.parse_args()
    for rows in () if chosen.show else chosen.rows:
        for size in SIZES[chosen.kind]:
            if not path(chosen.kind, size, rows).exists():
                print(f"making {chosen.kind}:{size} with {rows} rows each", file=sys.stderr, flush=True)
                make(chosen.kind, size, rows)
    plans = {rows: found for rows in chosen.rows if (found := stored(chosen.kind, rows))}
    if not plans:
        raise SystemExit(f"error: {FOLDER} has no plans of {chosen.kind}; run without --show first")
    print(report.table(table(plans)))
    plot(plans, chosen.kind, FOLDER / f"scaling_{chosen.kind}.png")


if __name__ == "__main__":
    main()
