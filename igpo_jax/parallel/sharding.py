"""Logical axis names, one table that maps them to the mesh, and the few calls that move arrays by those names.

Every function that is compiled works in two settings: without a mesh (the calls here are then identities) and under
``with jax.set_mesh(mesh)`` with explicit axes, where each array's type carries its sharding.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from igpo_jax.errors import UserError, nearest

#: Logical axis -> mesh axis or axes (None: replicated). Weights are split by "embed", activations by "batch".
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layer": None,
    "length": None,
    "norm": None,
    "rank": None,
    # Wide sides of a LoRA adapter whose narrow partner has no "embed": split over fsdp as well, or every device would
    # hold them, with their moments, whole.
    "heads_split": ("tensor", "fsdp"),
    "kv_heads_split": ("tensor", "fsdp"),
    "mlp_split": ("tensor", "fsdp"),
}

Axes = Sequence[str | None]


def spec(axes: Axes) -> PartitionSpec:
    """Partition spec of an array whose dimensions carry the logical names ``axes`` (None: replicated).

    Raises:
      UserError: a name has no rule, or two dimensions would use the same mesh axis.
    """
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise UserError(f"logical axis '{axis}' has no sharding rule{nearest(axis, RULES)}")
        rule = RULES[axis] if axis is not None else None
        names = set(_mesh_axes(rule))
        if clash := used & names:
            raise UserError(f"mesh axes {sorted(clash)} are used twice by an array with axes {tuple(axes)}")
        used |= names
        entries.append(rule)
    return PartitionSpec(*entries)


def active(axes: Axes) -> PartitionSpec | None:
    """``spec(axes)`` under a mesh with explicit axes, None without one: fits every ``out_sharding=`` argument."""
    return spec(axes) if under_mesh() else None


def under_mesh() -> bool:
    """Whether ``jax.set_mesh`` has set a mesh whose axes are explicit (inside ``shard_map`` they are not)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(kind == AxisType.Explicit for kind in mesh.axis_types)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """``x`` laid out by its logical axes under a mesh, ``x`` itself without one."""
    return jax.reshard(x, spec(axes)) if under_mesh() else x


def unsharded(weight: jax.Array, axes: Axes) -> jax.Array:
    """``weight`` gathered over the fsdp axis, still split over the tensor axis; its gradient is scattered back.

    Call it inside the layer loop, on the compute copy: then one layer at a time is whole, in the smaller dtype.
    """
    return constrain(weight, [None if axis == "embed" else axis for axis in axes])


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Mesh axes of one entry of a partition spec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def named(mesh: Mesh, axes: Axes) -> NamedSharding:
    """Sharding on ``mesh`` of an array with the logical axes ``axes``."""
    return NamedSharding(mesh, spec(axes))


def gather(table: jax.Array, ids: jax.Array, axes: Axes) -> jax.Array:
    """Rows ``table[ids]``, laid out by ``axes``; ids must lie inside the table.

    Args:
      table: (N, ...) possibly split over any mesh axes.
      ids: integers of any shape.
      axes: logical axes of the result, one per dimension of ``ids.shape + table.shape[1:]``.
    """
    table = jnp.asarray(table)
    if not under_mesh():
        return table.at[ids].get(mode="promise_in_bounds")
    # Rows come out split as the table is, and only then move to their place: picked straight into their place, the
    # compiler would first make the whole result on every device.
    columns = tuple(jax.typeof(table).sharding.spec)[1:]
    taken = {name for entry in columns for name in _mesh_axes(entry)}
    lead = [tuple(name for name in _mesh_axes(entry) if name not in taken) or None for entry in spec(axes)[: ids.ndim]]
    rows = table.at[ids].get(out_sharding=PartitionSpec(*lead, *columns), mode="promise_in_bounds")
    return jax.reshard(rows, spec(axes))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays (B, ...) as global arrays with dimension 0 split over the batch axes.

    Several processes each pass their own rows; together, in process order, these are the global batch.

    Raises:
      UserError: the rows do not divide over the devices.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        rows = leaf.shape[0] * jax.process_count()
        if rows % ways:
            raise UserError(
                f"a batch of {rows} rows does not divide over {ways} devices (mesh axes data x fsdp); "
                f"choose a batch size that is a multiple of {ways}"
            )
        return jax.make_array_from_process_local_data(named(mesh, ("batch", *[None] * (leaf.ndim - 1))), leaf)

    return jax.tree.map(place, tree)


def micro_batches(tree: Any, count: int) -> Any:
    """Arrays (B, ...) as (count, B / count, ...) for a scan over micro-batches; row r goes to micro-batch r % count.

    Dealing the rows out in turn keeps every row on its device, and leaves the leading axis unsplit, as a scan needs.

    Raises:
      UserError: ``count`` does not divide the rows.
    """

    def deal(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % count:
            raise UserError(
                f"a batch of {leaf.shape[0]} rows does not divide into {count} micro-batches; "
                "choose a number of micro-batches that divides the batch size"
            )
        dealt = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
        return constrain(jnp.swapaxes(dealt, 0, 1), (None, "batch", *[None] * (leaf.ndim - 1)))

    return jax.tree.map(deal, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf of ``tree`` (arrays, host or device) copied to all devices of ``mesh``."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def local_rows(tree: Any) -> Any:
    """The rows of batch-split arrays that this process passed to ``shard_batch``, as numpy arrays, in that order.

    Nothing is exchanged: a process reads what lies on its own devices.
    """

    def fetch(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        # Devices of one tensor group hold the same rows.
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(fetch, tree)


def to_host(tree: Any) -> Any:
    """Every leaf as a whole numpy array, also where this process holds only some of its shards."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
