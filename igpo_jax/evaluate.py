"""Scores a checkpoint on question sets under a named protocol.

  python -m igpo_jax.evaluate --checkpoint models/llada-8b --suite gsm8k,math500,amc --protocol paper --output out
  python -m igpo_jax.evaluate --checkpoint runs/quickstart --suite own --protocol run --output runs/quickstart/eval
  python -m igpo_jax.evaluate --checkpoint models/mine --suite questions.jsonl --protocol d1 --output out2

A checkpoint is a folder of `python -m convert import`, a Hugging Face folder, or a run directory of igpo_jax.train.
The output folder gets report.json, samples.jsonl and samples.html; the same command goes on where it was stopped.
`python -m igpo_jax.compare A B` compares two of them.
"""

import argparse
import contextlib
import math
import pathlib
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import Parser, guarded
from igpo_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    chosen = _parser().read(arguments)
    _check(chosen)

    from igpo_jax.evaluation import suites

    names = suites.parse_names(chosen.suite)
    places = suites.parse_places(chosen.data, names)

    from igpo_jax.parallel import mesh, processes
    from igpo_jax.rewards.pool import JudgePool, JudgeSettings

    with contextlib.ExitStack() as stack:
        # The worker processes start before JAX's own threads, and the number of devices is fixed before any array.
        settings = JudgeSettings(workers=chosen.judge_workers)
        judges = {"math": stack.enter_context(JudgePool(settings))}
        count = processes.initialize(chosen.coordinator, chosen.processes, chosen.process_id)
        mesh.force_cpu_devices(chosen.cpu_devices or _cpu_devices(chosen, count))
        stack.enter_context(processes.together(chosen.coordinator))

        from igpo_jax.evaluation import command

        command.evaluate(chosen, names, places, judges, stack)


def _cpu_devices(chosen: argparse.Namespace, processes: int) -> int:
    """As many virtual devices a process as cores, where the batch and the mesh divide over them."""
    from igpo_jax.parallel import mesh

    ways = chosen.fsdp * chosen.tensor
    rows = chosen.batch * chosen.tensor
    count = mesh.cpu_device_count([rows // processes if rows % processes == 0 else 1], mesh.usable_cores())
    return count if count % ways == 0 else ways


def _parser() -> Parser:
    from igpo_jax.evaluation.protocols import PROTOCOLS

    parser = Parser(prog="python -m igpo_jax.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the model")
    parser.add_argument("--suite", required=True, metavar="NAMES", help="gsm8k,math500,amc,... or FILE.jsonl, or own")
    parser.add_argument(
        "--protocol",
        required=True,
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)}; the last one asks as the training run itself did",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the report and the samples")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="where a suite lies; else it is downloaded"
    )
    parser.add_argument("--cache", default="", metavar="DIR", help="downloads and built data (default: ~/.cache)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N questions of every suite")
    changes = parser.add_argument_group("changes to the protocol", "the report shows what was asked")
    changes.add_argument("--template", metavar="NAME", help="prompt format")
    changes.add_argument("--length", type=int, metavar="N", help="tokens of a completion; the steps go along")
    changes.add_argument("--steps", type=int, metavar="N", help="denoising steps in all")
    changes.add_argument("--block-length", type=int, metavar="N", help="tokens of a block")
    changes.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    changes.add_argument("--samples", type=int, metavar="N", help="completions per question")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows asked together (default 64)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="compute dtype")
    parser.add_argument("--fsdp", type=int, default=1, metavar="N", help="devices over which a copy is split")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="devices that share each matrix")
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help="virtual devices of a CPU")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0, of several processes")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="how many run together")
    parser.add_argument("--process-id", type=int, default=-1, metavar="N", help="number of this one, from 0")
    parser.add_argument("--judge-workers", type=int, default=0, metavar="N", help="processes that judge")
    return parser


def _check(chosen: argparse.Namespace) -> None:
    """Raises UserError for flags that are wrong by themselves, before anything is loaded."""
    from igpo_jax.errors import check_choice
    from igpo_jax.evaluation.protocols import PROTOCOLS

    check_choice("--protocol", chosen.protocol, PROTOCOLS)
    for flag, least in (("batch", 1), ("fsdp", 1), ("tensor", 1), ("limit", 0), ("cpu_devices", 0), ("seed", 0)):
        value = getattr(chosen, flag)
        if value < least:
            raise UserError(f"--{flag.replace('_', '-')} is {value}, expected {least} or more")
    if chosen.temperature is not None and not (0 <= chosen.temperature < math.inf):
        raise UserError(f"--temperature is {chosen.temperature}, expected 0 or more")
    if not pathlib.Path(chosen.checkpoint).is_dir():
        raise UserError(f"--checkpoint {chosen.checkpoint} is not a folder; name the folder of a checkpoint")


if __name__ == "__main__":
    sys.exit(main())
