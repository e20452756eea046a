"""The most rows at a time that fit into an update: the micro-batch is what memory can be traded against."""

import dataclasses
from collections.abc import Callable
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.parallel.mesh import mesh_shape
from igpo_jax.planning.compiling import compile_one, open_plan
from igpo_jax.planning.estimate import Estimate
from igpo_jax.planning.programs import programs
from igpo_jax.planning.topology import Topology
from igpo_jax.training.run_settings import RunSettings

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ended with."""

    settings: RunSettings  #: with the fewest micro-batches that fit; with the most where none does
    changes: dict[str, Any]  #: the fields that it sets, by path
    update: tuple[Estimate, str]  #: the update as ``compiling.compile_one`` gave it, not to be compiled again
    sentence: str


def largest(settings: RunSettings, topology: Topology, note: Note) -> Found:
    """The settings with the fewest micro-batches whose update still fits, found by doubling and halving.

    What is set is rl.micro_batches and rl.score_batches, or sft.micro_batches where nothing else trains.

    Args:
      settings: the whole configuration; its own number of micro-batches is tried first.
      topology: where it would run.
      note: called with one line before and after each compilation.

    Raises:
      UserError: the config trains nothing, or as ``compiling.open_plan``.
    """
    stage = "rl" if settings.rl.steps else "sft"
    if not getattr(settings, stage).steps:
        raise UserError("--search looks for the micro-batch of an update, but sft.steps and rl.steps are both 0")
    rows = _rows(settings, stage)
    shards = _shards(settings, topology)
    choices = part_counts(rows, shards)
    tried: dict[int, tuple[Estimate, str]] = {}

    def fits(place: int) -> bool:
        count = choices[place]
        note(f"compiling the update with {stage}.micro_batches={count}")
        tried[place] = _compiled(_with(settings, stage, count), topology, stage)
        held = rows // count // shards
        note(f"{stage}.micro_batches={count}: {held} rows a device at a time, {_verdict(tried[place][0], topology)}")
        return tried[place][0].fits

    best = climb(fits, _nearest(choices, getattr(settings, stage).micro_batches), len(choices))
    names = ("micro_batches", "score_batches") if stage == "rl" else ("micro_batches",)
    changes = {f"{stage}.{name}": choices[best] for name in names}
    held = rows // choices[best] // shards
    how = " ".join(f"--config.{path}={value}" for path, value in changes.items())
    sentence = f"the most rows that fit are {held} a device at a time: {how}"
    if not tried[best][0].fits:
        sentence = f"not even {held} rows a device at a time fit: {how}"
    return Found(_with(settings, stage, choices[best]), changes, tried[best], sentence)


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


def _compiled(settings: RunSettings, topology: Topology, stage: str) -> tuple[Estimate, str]:
    """The stage's update, and its attention kernel."""
    abstract = open_plan(settings, topology)
    name = "update" if stage == "rl" else "sft update"
    program = next(one for one in programs(abstract) if one.name == name)
    return compile_one(program, abstract, topology)


def _verdict(result: Estimate, topology: Topology) -> str:
    needed = "needs more than there is" if result.needed is None else f"needs {result.needed:.2f} GiB"
    return f"{needed} of {topology.usable_gib:g}, {'fits' if result.fits else 'does not fit'}"
