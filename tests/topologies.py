"""Meshes of devices that are not here, for ahead-of-time compilation; needs the compilers' wheels."""

import os

import jax
from jax.experimental import topologies
from jax.sharding import AxisType

from igpo_jax.parallel.mesh import AXES

#: What XLA has to know of an H100 to compile for it.
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


def far_mesh(name: str, shape: tuple[int, int, int]) -> jax.sharding.Mesh:
    """A (data, fsdp, tensor) mesh of "h100" GPUs of one node, or of a TPU topology such as "v5e:2x2"."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if name == "h100":
        count = shape[0] * shape[1] * shape[2]
        layout = f"1x1x{count}"
        found = topologies.get_topology_desc("h100", platform="cuda", target_config=_H100, topology=layout)
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 3, devices=found.devices)
