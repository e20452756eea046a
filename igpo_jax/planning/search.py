"""The most rows at a time that fit into an update: the micro-batch is what memory can be traded against."""

import dataclasses
from collections.abc import Callable
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.parallel.mesh import mesh_shape
from igpo_jax.planning.compiling import compile_one, open_plan
from igpo_jax.planning.programs import programs
from igpo_jax.planning.topology import Topology
from igpo_jax.training.run_settings import RunSettings

Note = Callable[[str], None]


def largest(settings: RunSettings, topology: Topology, note: Note) -> tuple[RunSettings, list[str]]:
    """The settings with the fewest micro-batches whose update still fits, found by doubling and halving.

    Args:
      settings: the whole configuration; its own number of micro-batches is tried first.
      topology: where it would run.
      note: called with one line before each compilation.

    Returns:
      The settings changed in rl.micro_batches (or sft.micro_batches where nothing else trains), a line for each number
      that was tried, and one for the winner. Where none fits, the settings with the most micro-batches.

    Raises:
      UserError: the config trains nothing, or as ``compiling.open_plan``.
    """
    stage = "rl" if settings.rl.steps else "sft"
    if not getattr(settings, stage).steps:
        raise UserError("--search looks for the micro-batch of an update, but sft.steps and rl.steps are both 0")
    shards = _shards(settings, topology)
    choices = part_counts(_rows(settings, stage), shards)
    place = _nearest(choices, getattr(settings, stage).micro_batches)
    lines: list[str] = []
    fitting: set[int] = set()

    def fits(place: int) -> bool:
        changed = _with(settings, stage, choices[place])
        note(f"compiling the update with {stage}.micro_batches={choices[place]}")
        held = _rows(settings, stage) // choices[place] // shards
        verdict, needed = _update_fits(changed, topology, stage)
        lines.append(f"{stage}.micro_batches={choices[place]}: {held} rows a device at a time, {needed}")
        fitting.update({place} if verdict else ())
        return verdict

    best = climb(fits, place, len(choices))
    found = _with(settings, stage, choices[best])
    given = " ".join(f"--config.{path}={value}" for path, value in parts(found, stage).items())
    held = _rows(settings, stage) // choices[best] // shards
    won = f"the most rows that fit are {held} a device at a time: {given}"
    return found, [*lines, won if best in fitting else f"not even {held} rows a device at a time fit: {given}"]


def parts(settings: RunSettings, stage: str = "") -> dict[str, Any]:
    """The fields that the search sets, by path: those of a stage, by default of the one that it works on."""
    stage = stage or ("rl" if settings.rl.steps else "sft")
    names = ("micro_batches", "score_batches") if stage == "rl" else ("micro_batches",)
    return {f"{stage}.{name}": getattr(getattr(settings, stage), name) for name in names}


def climb(fits: Callable[[int], bool], place: int, count: int) -> int:
    """The lowest place that fits, from a starting place on, where everything above a place that fits does so too.

    The last place is returned where none fits.
    """
    if fits(place):
        while place > 0 and fits(place - 1):
            place -= 1
        return place
    while place + 1 < count:
        place += 1
        if fits(place):
            break
    return place


def part_counts(rows: int, shards: int) -> list[int]:
    """Numbers of micro-batches to try, ascending: powers of two that leave every device whole rows."""
    counts, parts = [], 1
    while rows % (parts * shards) == 0:
        counts.append(parts)
        parts *= 2
    return counts or [1]


def _nearest(choices: list[int], wanted: int) -> int:
    return min(range(len(choices)), key=lambda place: abs(choices[place] - wanted))


def _rows(settings: RunSettings, stage: str) -> int:
    return settings.rl.rollout.rows if stage == "rl" else settings.sft.batch_size


def _shards(settings: RunSettings, topology: Topology) -> int:
    data, fsdp, _ = mesh_shape(settings.mesh, topology.count)
    return data * fsdp


def _with(settings: RunSettings, stage: str, count: int) -> RunSettings:
    changes = {"micro_batches": count} | ({"score_batches": count} if stage == "rl" else {})
    return dataclasses.replace(settings, **{stage: dataclasses.replace(getattr(settings, stage), **changes)})


def _update_fits(settings: RunSettings, topology: Topology, stage: str) -> tuple[bool, str]:
    """Whether the stage's update fits, and what it needs, in words."""
    abstract = open_plan(settings, topology)
    name = "update" if stage == "rl" else "sft update"
    program = next(one for one in programs(abstract) if one.name == name)
    result, _ = compile_one(program, abstract, topology)
    needed = "needs more than there is" if result.needed is None else f"needs {result.needed:.2f} GiB"
    return result.fits, f"{needed} of {topology.usable_gib:g}, {'fits' if result.fits else 'does not fit'}"
