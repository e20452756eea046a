"""LLaDA-8B on six slices, full fine-tuning and LoRA: one plan for each cell, and the table of docs/scaling.md.

GRPO compiles what IGPO does, and so do the variants of hints, filter and start; DiffuGRPO and UniGRPO score otherwise.

Usage (needs pip install '.[plan-tpu]' and '.[plan-h100]'; a cell takes minutes, the whole table an hour or two):
  python benchmarks/plan_table.py            # compiles what is missing or no longer belongs to its config
  python benchmarks/plan_table.py --show     # prints the table from what is there

Each cell is a JSON file in benchmarks/results/plan, written when it is done: the command can be stopped and run again.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from igpo_jax import cli, settings
from igpo_jax.errors import UserError
from igpo_jax.planning import record, report
from igpo_jax.training.run_settings import RunSettings

FOLDER = pathlib.Path(__file__).parent / "results" / "plan"

#: Hardware word of configs/llada_8b -> its topology.
TOPOLOGIES = {
    "v6e-8": "v6e:2x4",
    "v6e-64": "v6e:8x8",
    "h100-8": "h100:1x8",
    "h100-64": "h100:8x8",
    "v5p-64": "v5p:4x4x4",
    "v5e-64": "v5e:8x8",
}

#: Cell -> (config with its variant, topology). RL holds more than SFT: it keeps a reference and samples.
CELLS = (
    {
        f"{config}_{hardware}_{trained}": (f"configs/llada_8b/{config}.py:{hardware},{trained}", topology)
        for config in ("igpo", "sft")
        for trained in ("lora", "full")
        for hardware, topology in TOPOLOGIES.items()
    }
    | {
        # Rows of 4,096 tokens; LoRA needs less memory for the same.
        f"sft_{hardware}_full_original": (f"configs/llada_8b/sft.py:{hardware},full,original", topology)
        for hardware, topology in TOPOLOGIES.items()
    }
    | {
        f"{method}_{hardware}_full": (f"configs/llada_8b/grpo.py:{hardware},full,{method}", topology)
        for method in ("diffugrpo", "unigrpo")
        for hardware, topology in TOPOLOGIES.items()
    }
)


def stale(cell: str) -> bool:
    """Whether a cell is missing or was made from other settings than its config has now."""
    path = FOLDER / f"{cell}.json"
    if not path.exists():
        return True
    config = cli.load_config(CELLS[cell][0])
    return record.read(path)["plan_hash"] != record.plan_hash(settings.from_config_dict(RunSettings, config))


def make(cell: str) -> None:
    """Compiles one cell in a process of its own, whose memory goes back when it ends."""
    config, topology = CELLS[cell]
    command = [sys.executable, "-m", "igpo_jax.plan", f"--config={config}", f"--topology={topology}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:  # a traceback also ends with 1
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
    try:
        record.write(done.stdout, FOLDER / f"{cell}.json")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def rows() -> list[tuple[str, ...]]:
    """The table: one line for each cell that is there."""
    found = [
        ("LLaDA-8B", "peak GiB", "of", "", "tightest", "rollout", "scoring", "update", "outer step", "MFU ceiling")
    ]
    for cell in CELLS:
        if (FOLDER / f"{cell}.json").exists():
            found.append(_row(cell, record.read(FOLDER / f"{cell}.json")))
    return found


def _row(cell: str, plan: Mapping[str, Any]) -> tuple[str, ...]:
    programs = {program["name"].removeprefix("sft "): program for program in plan["programs"]}
    tightest = max(plan["programs"], key=lambda program: program["needed"] or float("inf"))
    peak = "more" if tightest["needed"] is None else f"{tightest['needed']:.1f}"
    times = [report.seconds(programs[name]["seconds"]) if name in programs else "-" for name in _PROGRAMS]
    step, flops = (
        plan["step_seconds"],
        sum(program["runs"] * program["compute_seconds"] for program in plan["programs"]),
    )
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    name = " ".join(cell.split("_"))
    ceiling = f"{100 * flops / step:.0f}%"
    return (name, peak, f"{plan['hbm_gib']:g}", verdict, tightest["name"], *times, report.seconds(step), ceiling)


_PROGRAMS = ("rollout", "scoring", "update")


def main() -> None:
    """Makes what is missing, cell by cell, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the table only")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help="cells to make")
    chosen = parser.parse_args()
    for cell in () if chosen.show else chosen.cells:
        if stale(cell):
            print(f"making {cell}", file=sys.stderr, flush=True)
            make(cell)
    print(report.table(rows()))


if __name__ == "__main__":
    main()
