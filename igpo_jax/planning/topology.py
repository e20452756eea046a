"""Names of TPU slices and GPU clusters, and the devices that a compiler sees behind them."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.parallel.devices import DEVICES, Device
from igpo_jax.parallel.xla_flags import GPU_MEMORY

#: Kind -> the slices it is sold in. TPUs by the chips along each axis of the torus, GPUs by hosts x GPUs of a host.
SLICES: dict[str, tuple[str, ...]] = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "h100": ("1x1", "1x2", "1x4", "1x8", "2x8", "4x8", "8x8", "16x8", "32x8"),
}

#: Kind -> (module that brings the compiler, the pip line that installs it).
_COMPILERS = {
    "tpu": ("libtpu", "pip install '.[plan-tpu]'"),
    "gpu": ("jax_cuda13_plugin", "pip install '.[plan-h100]'"),
}

#: XLA's description of an H100 SXM, for compiling without one: the figures that CUDA reports on such a device.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535  block_dim_limit_z: 65535  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  clock_rate_ghz: 1.98  device_memory_size: 84942979072  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice or cluster by its name, as in ``v6e:8x8`` or ``h100:8x8``."""

    name: str
    kind: str  # key of SLICES and DEVICES
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Devices: TPU chips or GPUs."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """ "tpu" or "gpu"."""
        return "gpu" if self.kind == "h100" else "tpu"

    @property
    def device(self) -> Device:
        """What one device can do."""
        return DEVICES[self.kind]

    @property
    def usable_gib(self) -> float:
        """Memory of a device that programs get: on GPUs the share that the launch scripts set aside for them."""
        share = float(GPU_MEMORY["XLA_PYTHON_CLIENT_MEM_FRACTION"]) if self.platform == "gpu" else 1.0
        return round(share * self.device.hbm_gib, 2)

    def collective_bytes_per_second(self, group: int) -> float:
        """Bytes a second that each device can take in while ``group`` devices gather or reduce, at the links' peak.

        TPUs: both directions of every torus axis that the group can span, one direction where the axis is no ring
        (v5e and v6e close it at 16 chips, v5p at 4); groups smaller than the slice are given one axis. GPUs: NVLink
        inside a host; over hosts all of a host's network adapters work for each of its GPUs.
        """
        device = self.device
        if self.platform == "gpu":
            hosts_bound = device.network_bytes_per_second * self.shape[1]
            across = group > self.shape[1]
            return min(device.link_bytes_per_second, hosts_bound) if across else device.link_bytes_per_second
        ring = 4 if self.kind == "v5p" else 16
        axes = sorted((size for size in self.shape if size > 1), reverse=True)
        ways = [2 if size % ring == 0 else 1 for size in axes] or [1]
        used = ways if group >= self.count else ways[:1]
        return device.link_bytes_per_second * sum(used)


def parse(name: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: no such topology, with those that are known.
    """
    kind, _, shape = name.partition(":")
    if shape not in SLICES.get(kind, ()):
        known = "; ".join(f"{kind}:" + ", ".join(shapes) for kind, shapes in SLICES.items())
        raise UserError(f"--topology is '{name}', which is not known; choose a kind and a slice of it: {known}")
    return Topology(name, kind, tuple(int(size) for size in shape.split("x")))


def prepare_environment() -> None:
    """Sets what a plain process needs to compile for absent hardware; call it before anything is computed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # config files bring it, and it has read its environment then
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # libtpu looks for the cloud's metadata, for its neighbours and for a lock that only one process holds.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)


def check_compiler(topology: Topology) -> None:
    """Raises UserError, with the line that installs it, where the compiler for a topology is not installed."""
    module, install = _COMPILERS[topology.platform]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"--topology={topology.name} needs the compiler in the package {module.replace('_', '-')}, which is not "
            f"installed; run: {install}"
        )


def open_devices(topology: Topology) -> Sequence[Any]:
    """The devices of a topology, to build a mesh of and compile for; nothing can run on them.

    Raises:
      UserError: the compiler is missing or refuses the topology.
    """
    check_compiler(topology)
    from jax.experimental import topologies

    options: dict[str, Any] = {"platform": "tpu", "topology_name": topology.name}
    if topology.platform == "gpu":
        shape = f"1x{topology.shape[0]}x{topology.shape[1]}"
        options = {"platform": "cuda", "topology_name": "h100", "target_config": _H100, "topology": shape}
    try:
        return topologies.get_topology_desc(**options).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        install = _COMPILERS[topology.platform][1]
        raise UserError(
            f"--topology={topology.name} cannot be opened ({reason}); run {install} for the compiler that belongs to "
            "this jax"
        ) from error


def versions(topology: Topology) -> dict[str, str]:
    """Versions of everything that decides a plan: jax, jaxlib and the compiler's package."""
    names = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cudnn-cu13")}
    found = {}
    for name in ("jax", "jaxlib", *names[topology.platform]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
