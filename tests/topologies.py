"""Meshes of devices that are not here, for ahead-of-time compilation; needs the compilers' wheels."""

import os

import jax

from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.planning import topology


def far_mesh(name: str, shape: tuple[int, int, int]) -> jax.sharding.Mesh:
    """A (data, fsdp, tensor) mesh of "h100" GPUs of one node, or of a TPU topology such as "v5e:2x2"."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if name == "h100":
        name = f"h100:1x{shape[0] * shape[1] * shape[2]}"
    return make_mesh(MeshSettings(*shape), topology.open_devices(topology.parse(name)))
