"""What a compiled program holds on one device, sends between devices, and at least takes: the roofline."""

import dataclasses
import math
import re
from typing import Any

import jax

from igpo_jax.models.params import param_table
from igpo_jax.planning import hlo
from igpo_jax.planning.programs import Abstract, Program
from igpo_jax.planning.topology import Topology

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """GiB on one device while a program runs."""

    arguments: float  #: what the program is given
    temporaries: float  #: what it needs while it runs, its code included
    outputs: float  #: what it returns in memory of its own
    donated: float  #: part of the outputs that takes the place of arguments: no memory of its own
    beside: float  #: what stays on the device meanwhile and is no argument of it

    @property
    def total(self) -> float:
        """The peak: everything above but what is donated, which the arguments hold already."""
        return self.arguments + self.temporaries + self.outputs + self.beside


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device takes in over the links in one execution."""

    by_kind: dict[str, float]
    largest: tuple[tuple[str, str, float, float], ...]  #: (kind, array, times, bytes) of the costliest instructions
    seconds: float  #: at the peak of the links, one collective after another


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The plan of one program."""

    name: str
    runs: float
    rows: int
    memory: Memory | None  #: None where the compiler found no place for it
    needed: float | None  #: GiB that the compiler says are needed, where it found no place
    fits: bool
    headroom: float | None  #: GiB left on a device; negative: missing; None where the compiler does not say how much
    flops: float  #: model FLOPs of one execution on all devices
    traffic: Traffic | None
    compute_seconds: float
    memory_seconds: float
    seconds: float  #: roofline: the longest of computing, memory and links, which at best overlap
    bound: str
    mfu_ceiling: float
    compile_seconds: float


def on_one_device(tree: Any) -> float:
    """Bytes of the abstract arrays of ``tree`` on one device; an array that occurs twice counts once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    return float(sum(_bytes(leaf) for leaf in leaves))


def _bytes(leaf: Any) -> int:
    held = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    # A key's four words are no dtype of numpy's.
    size = leaf.dtype.itemsize if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 8
    return math.prod(held) * size


def memory_of(compiled: Any, beside: float) -> Memory:
    """Sizes by kind as the compiler states them, with what stays beside the program (bytes)."""
    stats = compiled.memory_analysis()
    donated = stats.alias_size_in_bytes
    return Memory(
        arguments=stats.argument_size_in_bytes / GIB,
        temporaries=(stats.temp_size_in_bytes + stats.generated_code_size_in_bytes) / GIB,
        outputs=(stats.output_size_in_bytes - donated) / GIB,
        donated=donated / GIB,
        beside=beside / GIB,
    )


def traffic_of(sent: list[hlo.Sent], topology: Topology) -> Traffic:
    """Sums of a program's collectives, and the time that the links need for them."""
    by_kind = {kind: sum(one.total for one in sent if one.kind == kind) for kind in hlo.COLLECTIVES}
    costly: dict[tuple[str, str], tuple[float, float]] = {}
    for one in sent:
        times, total = costly.get((one.kind, one.shape), (0.0, 0.0))
        costly[one.kind, one.shape] = (times + one.times, total + one.total)
    largest = [(*what, *cost) for what, cost in sorted(costly.items(), key=lambda item: -item[1][1])[:5]]
    seconds = sum(one.total / topology.collective_bytes_per_second(one.group) for one in sent)
    return Traffic({kind: size for kind, size in by_kind.items() if size}, tuple(largest), seconds)


def memory_seconds(program: Program, abstract: Abstract, topology: Topology) -> float:
    """Least time for one device's memory: gathered weights read once a pass, logits written and read, state rewritten.

    Activations and attention are left out: how often they visit memory is the compiler's choice.
    """
    shape = abstract.mesh.shape
    specs = jax.tree.leaves(param_table(abstract.model.config))
    weights = sum(math.prod(spec.shape) for spec in specs) * abstract.model.dtype.itemsize / shape["tensor"]
    logits = 2 * 4 * program.logits / topology.count
    state = 2 * on_one_device(program.optimizes) if program.optimizes is not None else 0.0
    return (program.passes * weights + logits + state) / topology.device.hbm_bytes_per_second


def estimate(
    program: Program, abstract: Abstract, topology: Topology, compiled: Any, sent: list[hlo.Sent] | None, seconds: float
) -> Estimate:
    """The plan of a program that compiled; ``sent`` is None where its text could not be read."""
    memory = memory_of(compiled, on_one_device(program.beside))
    traffic = None if sent is None else traffic_of(sent, topology)
    compute = program.flops / (topology.count * topology.device.peak_bf16_flops)
    times = {
        "compute": compute,
        "memory": memory_seconds(program, abstract, topology),
        "links": traffic.seconds if traffic else 0.0,
    }
    bound = max(times, key=lambda name: times[name])
    headroom = topology.usable_gib - memory.total
    return Estimate(
        name=program.name,
        runs=program.runs,
        rows=program.rows,
        memory=memory,
        needed=memory.total,
        fits=headroom >= 0,
        headroom=headroom,
        flops=program.flops,
        traffic=traffic,
        compute_seconds=compute,
        memory_seconds=times["memory"],
        seconds=times[bound],
        bound=bound,
        mfu_ceiling=compute / times[bound],
        compile_seconds=seconds,
    )


#: How TPU compilers say that a program has no place. The first counts everything, the second only temporaries.
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}


def is_out_of_memory(error: Exception) -> bool:
    """Whether a compiler's error says that a program has no place on the device."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "Ran out of memory" in text or "out of memory" in text.lower()


def _needed(error: Exception, arguments: float) -> float | None:
    """GiB that a refused program needs by the compiler's words, None where they do not say."""
    if match := _USED.search(str(error)):
        return float(match[1]) * _UNITS[match[2]]
    if match := _TEMPORARIES.search(str(error)):
        return float(match[1]) * _UNITS[match[2]] + arguments
    return None


def without_place(
    program: Program, abstract: Abstract, topology: Topology, error: Exception, arguments: Any, seconds: float
) -> Estimate:
    """The plan of a program that the compiler refused for want of memory; ``arguments`` is the tree of its types."""
    # Types are no arrays: one that occurs twice stands for two arrays.
    alone = _needed(error, sum(_bytes(leaf) for leaf in jax.tree.leaves(arguments)) / GIB)
    needed = None if alone is None else alone + on_one_device(program.beside) / GIB
    compute = program.flops / (topology.count * topology.device.peak_bf16_flops)
    least = memory_seconds(program, abstract, topology)
    return Estimate(
        name=program.name,
        runs=program.runs,
        rows=program.rows,
        memory=None,
        needed=needed,
        fits=False,
        headroom=None if needed is None else min(topology.usable_gib - needed, -0.01),
        flops=program.flops,
        traffic=None,
        compute_seconds=compute,
        memory_seconds=least,
        seconds=max(compute, least),
        bound="compute" if compute >= least else "memory",
        mfu_ceiling=compute / max(compute, least),
        compile_seconds=seconds,
    )
