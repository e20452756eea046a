"""From settings and the name of a topology to a plan: every program lowered, compiled and estimated."""

import dataclasses
import datetime
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import check_groups, make_mesh, mesh_shape
from igpo_jax.planning import hlo
from igpo_jax.planning.estimate import GIB, Estimate, estimate, is_out_of_memory, on_one_device, without_place
from igpo_jax.planning.programs import Abstract, Program, model_config, programs
from igpo_jax.planning.record import plan_hash
from igpo_jax.planning.report import advice
from igpo_jax.planning.topology import Topology, open_devices, versions
from igpo_jax.training.run_settings import RunSettings

#: Attention kernels by the name of their custom call.
KERNELS = {
    "splash": ("tpu_custom_call",),
    "cudnn": ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleMaskSoftmax"),
}

#: Devices of the largest host. The compilers call eight TPU chips two hosts, which clouds rent as one.
LARGEST_HOST = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is known about a config on a topology."""

    config: str  #: config file with its variant
    overrides: dict[str, Any]
    plan_hash: str  #: of the fields that decide a plan, see record.DECIDING
    topology: str
    devices: int
    device_kind: str
    hbm_gib: float
    mesh: dict[str, int]
    parameters: int
    versions: dict[str, str]
    attention: str  #: kernel found in the compiled text, "xla" where there is none
    date: str
    programs: tuple[Estimate, ...]
    advice: str  #: the first change to try where it does not fit, empty where it does

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(program.fits for program in self.programs)

    @property
    def step_seconds(self) -> float:
        """Roofline of one outer step without a second round; of one SFT update where a run has no RL."""
        parts = [program for program in self.programs if program.name != "sft update"] or self.programs
        return sum(program.runs * program.seconds for program in parts)


def check_layout(settings: RunSettings, topology: Topology) -> None:
    """Raises UserError where the mesh does not divide the topology's devices or a batch; needs no compiler."""
    data, fsdp, _ = mesh_shape(settings.mesh, topology.count)
    settings.check_shards(data * fsdp)


def open_plan(settings: RunSettings, topology: Topology) -> Abstract:
    """The run's shapes on the topology's mesh.

    Raises:
      UserError: the compiler is missing, or the mesh does not divide the devices, the model or a batch, or spreads a
        tensor group over several hosts.
    """
    check_layout(settings, topology)
    mesh = make_mesh(settings.mesh, open_devices(topology))
    if topology.count > LARGEST_HOST:
        check_groups(mesh)
    config = model_config(settings, mesh.shape["tensor"])
    llada.shardings(config, mesh)
    length = settings.prompt_length + max(settings.sampler.length, settings.sft.completion_length)
    if length > config.max_sequence_length:
        raise UserError(
            f"prompt_length and the longest completion make rows of {length} tokens, longer than the model's "
            f"max_sequence_length {config.max_sequence_length}; shorten one of them"
        )
    return Abstract(settings, llada.Model(config, settings.compute), mesh)


def hopeless(settings: RunSettings, topology: Topology) -> str:
    """One sentence where a run's arrays alone exceed a device, known from shapes without compiling; else empty.

    Raises:
      UserError: as ``open_plan``.
    """
    abstract = open_plan(settings, topology)
    found = programs(abstract)
    held = max(on_one_device((program.beside, program.optimizes)) for program in found) / GIB
    if held <= topology.usable_gib:
        return ""
    shards = abstract.mesh.shape["data"] * abstract.mesh.shape["fsdp"]
    # More parts or less kept for the backward pass cannot help here: only a smaller state or more devices can.
    smallest = dataclasses.replace(settings, compute=dataclasses.replace(settings.compute, remat="full"))
    rows = {"rl": settings.rl.rollout.rows // shards, "sft": settings.sft.batch_size // shards}
    for stage, parts in rows.items():
        changed = dataclasses.replace(getattr(smallest, stage), micro_batches=max(1, parts))
        smallest = dataclasses.replace(smallest, **{stage: changed})
    return (
        f"it cannot fit on {topology.name}: parameters, optimizer state and reference alone take {held:.1f} GiB "
        f"of each device's {topology.usable_gib:g}; first change to try: "
        f"{advice(smallest, ['update' if settings.rl.steps else 'sft update'], shards)}"
    )


def make_plan(
    settings: RunSettings,
    topology: Topology,
    config: str = "",
    overrides: dict[str, Any] | None = None,
    note: Callable[[str], None] = lambda _: None,
    ready: Sequence[tuple[Estimate, str]] = (),
) -> Plan:
    """Compiles every program of a run for a topology.

    Args:
      settings: the whole configuration.
      topology: where it would run.
      config: the config file's name, for the record.
      overrides: what was changed on the command line, for the record.
      note: called with one line before each compilation.
      ready: what ``compile_one`` gave for programs of these settings, which are then not compiled again.

    Raises:
      UserError: as ``open_plan``.
    """
    abstract = open_plan(settings, topology)
    known = {result.name: (result, kernel) for result, kernel in ready}
    estimates, kernels = [], set()
    for program in programs(abstract):
        if program.name not in known:
            note(f"compiling {program.name} for {topology.name}")
        result, kernel = known.get(program.name) or compile_one(program, abstract, topology)
        estimates.append(result)
        kernels |= {kernel} if kernel else set()
    leaves = jax.tree.leaves(llada.abstract(abstract.model.config))
    short = [result.name for result in estimates if not result.fits]
    return Plan(
        config=config,
        overrides=overrides or {},
        plan_hash=plan_hash(settings),
        topology=topology.name,
        devices=topology.count,
        device_kind=abstract.mesh.devices.flat[0].device_kind,
        hbm_gib=topology.usable_gib,
        mesh=dict(abstract.mesh.shape),
        parameters=sum(leaf.size for leaf in leaves),
        versions=versions(topology),
        attention=", ".join(sorted(kernels)) or "unknown",
        date=datetime.date.today().isoformat(),
        programs=tuple(estimates),
        advice=advice(settings, short, abstract.mesh.shape["data"] * abstract.mesh.shape["fsdp"]) if short else "",
    )


def compile_one(program: Program, abstract: Abstract, topology: Topology) -> tuple[Estimate, str]:
    """The estimate of one program, and the attention kernel in its compiled text ("" where there is no text)."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(abstract.mesh):
        lowered = program.lower()
        try:
            compiled = lowered.compile(compiler_options=_options(topology, folder))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            seconds = time.perf_counter() - started
            return without_place(program, abstract, topology, error, lowered.in_avals, seconds), ""
        text = _text(compiled, pathlib.Path(folder))
    seconds = time.perf_counter() - started
    sent = None if text is None else hlo.collectives(text, topology.count, program.unknown_trips)
    return estimate(program, abstract, topology, compiled, sent, seconds), _kernel(text)


def _options(topology: Topology, folder: str) -> dict[str, Any]:
    """TPU compilers also write their text to a folder: newer ones use instructions that an older jax cannot print."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if topology.platform == "tpu" else {}


def _text(compiled: Any, folder: pathlib.Path) -> str | None:
    """The optimised program as text, None where neither jax nor the compiler gives it."""
    written = sorted(folder.rglob("*after_optimizations.txt"), key=lambda path: path.stat().st_size)
    if written:
        return written[-1].read_text()
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def _kernel(text: str | None) -> str:
    if text is None:
        return ""
    return next((name for name, targets in KERNELS.items() if hlo.has_call(text, *targets)), "xla")
