"""What a report says of where its numbers come from: the weights, the machine, the judge, the libraries."""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
from typing import Any

import jax
import jax.numpy as jnp

from igpo_jax import __version__
from igpo_jax.models import llada
from igpo_jax.rewards.version import LIBRARIES, judge_version

#: Libraries of which a score may depend.
_LIBRARIES = ("jax", "jaxlib", "numpy", "flax", "transformers", "tokenizers")


def weights_digest(params: llada.Params) -> str:
    """First 12 hexadecimal digits of a digest of every parameter's bits, the same on any number of devices.

    Each tensor is reduced where it lies, to one number that depends on every bit and on its row and column; nothing is
    copied to the host.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        line = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(_checksum(leaf))}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:12]


@functools.partial(jax.jit)
def _checksum(leaf: jax.Array) -> jax.Array:
    """() uint32: the bits of the leaf, weighted by odd numbers along the last two axes, summed modulo 2**32."""
    width = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    total = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
    for axis in range(max(0, leaf.ndim - 2), leaf.ndim):
        weights = 2 * jnp.arange(leaf.shape[axis], dtype=jnp.uint32) + 1
        shape = [1] * leaf.ndim
        shape[axis] = leaf.shape[axis]
        total = total * weights.reshape(shape)
    return jnp.sum(total, dtype=jnp.uint32)


def machine(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The devices of a mesh."""
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else platform.machine() or "cpu",
        "devices": int(mesh.devices.size),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
    }


def judge() -> dict[str, str]:
    """The judge: its name, and the digest of its code and libraries."""
    return {"name": "igpo_jax.rewards", "version": judge_version()}


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that a score may depend on."""
    found = {"python": platform.python_version(), "igpo_jax": __version__}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES} | judge_versions()


def judge_versions() -> dict[str, str]:
    """Versions of the libraries that the judge uses."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def checkpoint(path: pathlib.Path, kind: str, params: llada.Params) -> dict[str, Any]:
    """Which weights were evaluated."""
    return {
        "path": str(path),
        "kind": kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "weights": weights_digest(params),
    }
