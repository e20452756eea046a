"""The device mesh, and how many CPU devices a run should pretend to have."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from igpo_jax.errors import UserError

#: Mesh axes, outermost first: copies of the model, its shards, and slices of its matrices.
AXES = ("data", "fsdp", "tensor")

_CGROUP = pathlib.Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis; at most one axis may be -1, which takes what the others leave."""

    data: int = -1  #: copies of the model, each with its own rows
    fsdp: int = 1  #: devices over which one copy's weights and rows are split
    tensor: int = 1  #: devices over which each layer's heads and MLP columns are split

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in AXES}
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise UserError(f"mesh.{name} is {size}, expected a positive number or -1; use 1 to switch it off")
        if sum(size == -1 for size in sizes.values()) > 1:
            raise UserError(f"mesh has more than one axis set to -1 ({sizes}); give all but one a number")


def make_mesh(settings: MeshSettings | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the (data, fsdp, tensor) mesh with explicit axis types.

    Args:
      settings: sizes per axis; the default puts every device on the data axis.
      devices: devices to use, by default all of them.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the data axis does not divide over TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(settings or MeshSettings(), len(devices), virtual=devices[0].platform == "cpu")
    return Mesh(arranged(shape, devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def arranged(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the shape of a mesh: neighbours on a torus beside each other, one TPU slice after the other.

    ``jax.make_mesh`` refuses devices of several slices, and to jax every host of GPUs is a slice of its own: there the
    order of the devices' numbers keeps a host's together.

    Args:
      shape: devices along each of ``AXES``.
      devices: as many.

    Raises:
      UserError: the data axis does not divide over the TPU slices.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if devices[0].platform != "tpu" or len(slices) == 1:
        return _whole_groups(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True))
    if shape[0] % len(slices):
        raise UserError(
            f"mesh.data is {shape[0]}, which does not divide over the {len(slices)} slices of this run; make it a "
            f"multiple of {len(slices)}, so that weights are split within a slice"
        )
    inside = (shape[0] // len(slices), *shape[1:])
    return np.concatenate([arranged(inside, slices[index]) for index in sorted(slices)])


def _whole_groups(grid: np.ndarray) -> np.ndarray:
    """The devices of a mesh, those of each process in a row where its tensor groups would else lie in several."""
    groups = grid.reshape(-1, grid.shape[-1])
    if all(len({device.process_index for device in group}) == 1 for group in groups):
        return grid
    of_process: dict[int, list[jax.Device]] = {}
    for device in grid.flat:
        of_process.setdefault(device.process_index, []).append(device)
    return np.asarray([device for own in of_process.values() for device in own]).reshape(grid.shape)


def mesh_shape(settings: MeshSettings, count: int, virtual: bool = False) -> tuple[int, int, int]:
    """Devices along each axis of the mesh over ``count`` devices.

    Args:
      settings: sizes per axis.
      count: devices.
      virtual: whether they are parts of a CPU, whose number is a choice.

    Raises:
      UserError: the sizes do not multiply to ``count``.
    """
    sizes = [getattr(settings, name) for name in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if count % fixed or (-1 not in sizes and fixed != count):
        found = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        there = f"{count}, virtual ones of the CPU (cpu_devices sets how many a process has)" if virtual else f"{count}"
        raise UserError(
            f"mesh ({found}) needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices but found {there}; "
            "set one axis to -1 or choose sizes whose product is the device count"
        )
    data, fsdp, tensor = (count // fixed if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def check_groups(mesh: Mesh) -> None:
    """Raises UserError where the devices of one tensor group, which hold the same rows, are of several processes."""
    every = {device.process_index for device in np.asarray(mesh.devices).flat}
    if any(len(owners) > 1 for owners in _owners(mesh)):
        raise UserError(
            f"mesh.tensor is {mesh.shape['tensor']}, which spreads one row over several processes of "
            f"{mesh.devices.size // len(every)} devices; choose a mesh.tensor whose devices lie in one process"
        )


def check_processes(mesh: Mesh) -> None:
    """Raises UserError where several processes would hold the same rows, or processes hold unequal numbers of them."""
    check_groups(mesh)
    owners = _owners(mesh)
    every = set().union(*owners)
    shares = {owners.count({process}) for process in every}
    if len(shares) > 1 or len(every) != jax.process_count():
        raise UserError(
            f"the processes have unequal shares of the mesh ({sorted(shares)} row shards); give each as many devices"
        )


def _owners(mesh: Mesh) -> list[set[int]]:
    """Processes that the devices of each tensor group belong to."""
    groups = np.asarray(mesh.devices).reshape(-1, mesh.shape["tensor"])
    return [{device.process_index for device in group} for group in groups]


def usable_cores() -> int:
    """Number of CPU cores this process may really use: its affinity, cut by the container's quota (cgroup 1 or 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, cores if quota is None else min(cores, math.floor(quota)))


def _cgroup_cores() -> float | None:
    """Cores allowed by the CPU quota of the container, None where there is no quota."""
    try:
        if (_CGROUP / "cpu.max").exists():
            limit, period = (_CGROUP / "cpu.max").read_text().split()
        else:
            limit = (_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def cpu_device_count(batches: Sequence[int], cores: int) -> int:
    """Largest number of virtual CPU devices, at most ``cores``, that divides every batch size in ``batches``."""
    common = math.gcd(*batches) if batches else 1
    return next(count for count in range(max(1, cores), 0, -1) if common % count == 0)


def force_cpu_devices(count: int) -> None:
    """Splits the host CPU into ``count`` jax devices; call it before anything starts the jax backend.

    Raises:
      UserError: the backend already runs with another number of devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.devices("cpu")) != count:
            found = len(jax.devices("cpu"))
            raise UserError(
                f"the CPU cannot be split into {count} devices because jax already runs with {found}; "
                "set the number of devices before the first array is made"
            ) from error


def mesh_platform(mesh: Mesh) -> str:
    """Platform of the mesh's devices: "cpu", "gpu" or "tpu"."""
    return np.asarray(mesh.devices).flat[0].platform
