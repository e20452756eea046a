"""Plans a run for hardware that is not here: does it fit, what does it send, how fast can it be at best.

Usage:
  python -m igpo_jax.plan --config=configs/llada_8b/igpo.py:v6e-8,lora --topology=v6e:2x4
  python -m igpo_jax.plan --config=configs/llada_8b/igpo.py:v6e-8 --topology=v6e:2x4 --search
  python -m igpo_jax.plan --config=configs/quickstart.py --topology=h100:1x8 --json

The run's own programs are compiled by the real compilers, which need no accelerator: libtpu for TPUs
(pip install '.[plan-tpu]'), the CUDA plugin for H100s (pip install '.[plan-h100]'). Parameters are never made.
Topologies: v5e, v6e by chips (8x8), v5p by chips in three directions (4x4x4), h100 by hosts x GPUs of a host (8x8).
The exit code is 0 where everything fits, 1 where not, 2 after an error. docs/scaling.md explains the tables.
"""

import json
import sys

from absl import flags

from igpo_jax import cli, settings


def define(values: flags.FlagValues) -> None:
    """Declares the command's own flags."""
    flags.DEFINE_string("topology", "", "What to plan for, as in v6e:8x8 or h100:8x8.", flag_values=values)
    flags.DEFINE_bool(
        "search",
        False,
        "Find the most rows at a time that fit in an update (RL's, or SFT's where there is no RL), and plan that.",
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "Print the plan as JSON and nothing else.", flag_values=values)


def main(command: cli.Command) -> int:
    """Compiles, prints, and says by the exit code whether everything fits."""
    from igpo_jax.planning import topology
    from igpo_jax.training.run_settings import RunSettings

    target = topology.parse(command.flags.topology)
    run = settings.from_config_dict(RunSettings, command.config)
    topology.prepare_environment()

    from igpo_jax.planning import compiling, record, report, search

    compiling.check_layout(run, target)
    topology.check_compiler(target)
    if reason := compiling.hopeless(run, target):
        print(json.dumps({"fits": False, "reason": reason}) if command.flags.json else reason)
        return 1
    overrides, ready = dict(command.overrides), []
    if command.flags.search:
        found = search.largest(run, target, _note)
        print(found.sentence, file=sys.stderr if command.flags.json else sys.stdout, flush=True)
        run, overrides, ready = found.settings, overrides | found.changes, [found.update]
    plan = compiling.make_plan(run, target, command.config_file, overrides, _note, ready)
    text = record.to_json(plan)
    print(text.rstrip() if command.flags.json else report.render(json.loads(text)))
    return 0 if plan.fits else 1


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, define=define, requires=("config", "topology"), common=("config",))
