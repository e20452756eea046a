"""Trains a masked diffusion language model: SFT, then IGPO, with evaluations around each stage.

Usage:
  python -m igpo_jax.train --config=configs/quickstart.py --workdir=runs/first
  python -m igpo_jax.train --config=configs/quickstart.py:grpo --workdir=runs/baseline --config.seed=1

Run again with the same --workdir, it goes on from the newest checkpoint. SIGTERM and Ctrl-C save and end the run, with
exit code 75 and 130. With --check, one tiny step of every stage runs, is saved and restored, and nothing of it stays: a
smoke test before a long run.

On several machines, run the same command on each: TPU pods and srun are recognised by themselves, elsewhere add
--coordinator=HOST:PORT --processes=COUNT --process-id=NUMBER (docs/multi_host.md).
"""

import contextlib
import sys
from typing import Any, cast

from absl import flags

from igpo_jax import cli, settings


def define(values: flags.FlagValues) -> None:
    """Declares the command's own flags."""
    flags.DEFINE_boolean("check", False, "Only try one tiny step of every stage of the config.", flag_values=values)
    flags.DEFINE_boolean(
        "allow-other-devices", False, "Go on with a run on other devices than it began on.", flag_values=values
    )
    flags.DEFINE_boolean(
        "resume-with-changes", False, "Go on with a run under other settings than it began with.", flag_values=values
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, of several processes.", flag_values=values)
    flags.DEFINE_integer("processes", 0, "How many processes run together.", flag_values=values)
    flags.DEFINE_integer("process-id", -1, "Number of this process, from 0.", flag_values=values)


def main(command: cli.Command) -> int:
    """Reads the settings, starts the judge and the devices, and runs the recipe; returns the exit code."""
    from igpo_jax.training.run_settings import RunSettings

    run_settings = settings.from_config_dict(RunSettings, command.config)

    from igpo_jax.parallel import mesh, processes
    from igpo_jax.rewards.pool import JudgePool
    from igpo_jax.training import stopping

    given, stop = command.flags, stopping.Stop()
    # The worker processes start before JAX's own threads, and the number of devices is fixed before the first array.
    with JudgePool(run_settings.judge) as judge:
        where, *numbers = (cast(Any, given[name].value) for name in ("coordinator", "processes", "process-id"))
        count = processes.initialize(where, *numbers)
        # A CPU's devices are this process's part of all, so its batches are too.
        batches = [rows // count if rows % count == 0 else 1 for rows in run_settings.batches]
        cores = mesh.usable_cores()
        devices = run_settings.cpu_devices or mesh.cpu_device_count(batches, cores)
        mesh.force_cpu_devices(devices)
        # Joining the others sets a handler for SIGTERM; the run's own comes after it and stays.
        # A check has nothing to save, so it just ends.
        listening = contextlib.nullcontext() if given["check"].value else stop.listening()
        with listening, processes.together(where):
            if devices < cores and not run_settings.cpu_devices:
                rows = ", ".join(str(rows) for rows in sorted(set(run_settings.batches)))
                print(
                    f"on CPU {devices} of {cores} cores are used: more do not divide every batch ({rows} rows)",
                    flush=True,
                )
            return _run(command, run_settings, judge, stop)


def _run(command: cli.Command, run_settings: Any, judge: Any, stop: Any) -> int:
    """The recipe, or its check; returns the exit code."""
    from igpo_jax.training import check, files, recipe, run_directory, stopping

    workdir, given = command.workdir.absolute(), command.flags
    resuming = run_directory.Resuming(
        other_devices=bool(given["allow-other-devices"].value),
        with_changes=bool(given["resume-with-changes"].value),
    )
    try:
        with files.named_when_full(workdir):
            if given["check"].value:
                return 0 if check.check(run_settings, workdir, judge) else 1
            recipe.train(run_settings, workdir, judge, resuming, stop)
    except stopping.Stopped as stopped:
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)
        return stopped.code
    return 0


if __name__ == "__main__":
    cli.run(main, define=define)
