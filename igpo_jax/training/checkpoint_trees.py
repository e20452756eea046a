"""A training state as the flat dict of plain arrays that a checkpoint stores, and back."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.errors import UserError

_SHOWN = 6


def to_storage(state: Any) -> dict[str, Any]:
    """Returns ``{path: array}`` of a pytree, typed PRNG keys as their uint32 data."""
    return {path: jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in _flatten(state).items()}


def abstract_storage(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what ``to_storage`` of such a state looks like, every leaf with the sharding to read it into.

    Args:
      state: pytree of arrays or ``ShapeDtypeStruct``; a leaf without a sharding goes to the first device.
    """
    return {path: _abstract_leaf(leaf) for path, leaf in _flatten(state).items()}


def from_storage(arrays: Mapping[str, jax.Array], like: Any) -> Any:
    """Returns the stored arrays in the tree of ``like``, with typed PRNG keys where it has them."""
    leaves = [
        jax.random.wrap_key_data(arrays[path], impl=_key_impl(leaf)) if _is_key(leaf) else arrays[path]
        for path, leaf in _flatten(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """By path, the sum of an array's bits as unsigned words, modulo 2**32: another where a bit has flipped.

    The same on every layout of the devices, because sums of whole numbers do not depend on their order; each array is
    summed up where it lies. All processes have to call it.
    """
    groups: dict[frozenset[jax.Device], dict[str, jax.Array]] = {}
    for path, array in arrays.items():
        placed = jnp.asarray(array)
        groups.setdefault(frozenset(placed.sharding.device_set), {})[path] = placed
    sums: dict[str, int] = {}
    for group in groups.values():
        # One program, and its end awaited: several under way at once may meet in another order in another process.
        sums |= {path: int(value) for path, value in _sums_of_bits(group).items()}
    return sums


@jax.jit
def _sums_of_bits(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: _sum_of_bits(array) for path, array in arrays.items()}


def _sum_of_bits(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return jnp.sum(array, dtype=jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jnp.sum(jax.lax.bitcast_convert_type(array, word), dtype=jnp.uint32)


def record_checksum(record: Mapping[str, Any]) -> int:
    """That of the JSON values beside the arrays."""
    return zlib.crc32(json.dumps({**record, "own_checksum": 0}, sort_keys=True).encode())


def check_sums(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Raises ValueError where what was read is not what was saved; older checkpoints, without sums, are passed.

    Args:
      record: the JSON values of the checkpoint, among them ``checksums`` and ``own_checksum``.
      arrays: by path, those of its arrays that were read.
    """
    if record.get("own_checksum", record_checksum(record)) != record_checksum(record):
        raise ValueError("bits have changed on the disk in what is stored beside the arrays")
    saved = record.get("checksums", {})
    found = checksums({path: array for path, array in arrays.items() if path in saved})
    damaged = [path for path, value in found.items() if value != saved[path]]
    if damaged:
        raise ValueError(_listing(f"bits have changed on the disk in {len(damaged)} arrays", damaged))


def check(saved: Mapping[str, Any], wanted: Mapping[str, Any], source: str, subset: bool) -> None:
    """Raises UserError listing missing, extra and wrongly shaped paths, with the likely cause.

    Args:
      saved: path to something with a shape and a dtype, as stored.
      wanted: the same, as the program expects it.
      source: what to call the checkpoint.
      subset: whether it may have paths that are not wanted.
    """
    missing = [path for path in wanted if path not in saved]
    extra = [] if subset else [path for path in saved if path not in wanted]
    reshaped = [path for path in wanted if path in saved and _kind(saved[path]) != _kind(wanted[path])]
    if not missing and not extra and not reshaped:
        return
    parts = [
        _listing("missing from it", missing),
        _listing("not expected", extra),
        _listing("different", [f"{p} (saved {_show(saved[p])}, expected {_show(wanted[p])})" for p in reshaped]),
    ]
    raise UserError(
        f"{source} does not fit this run: {'; '.join(part for part in parts if part)}. "
        f"{_likely_cause(missing, extra, reshaped)}"
    )


def _flatten(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    """The generator of typed keys; only traced or concrete keys are asked for it, and ``leaf`` may be neither."""
    impls: list[Any] = []
    jax.eval_shape(lambda keys: impls.append(jax.random.key_impl(keys)), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return impls[0]


def _abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = _concrete(getattr(leaf, "sharding", None))
    if _is_key(leaf):
        # The data has trailing dimensions more than the keys; the sharding's spec leaves them whole.
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _concrete(sharding: Any) -> jax.sharding.Sharding:
    """Returns a sharding that names devices: ``eval_shape`` gives none, or one over the abstract mesh."""
    mesh = getattr(sharding, "mesh", None)
    if sharding is None or (mesh is not None and mesh.empty):
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if not isinstance(mesh, jax.sharding.AbstractMesh):
        return sharding
    current = jax.sharding.get_mesh()
    if current.empty or current.abstract_mesh.shape != mesh.shape:
        raise ValueError(
            f"the abstract state is laid out over {mesh}, which names no devices; restore under jax.set_mesh"
        )
    return jax.sharding.NamedSharding(current, sharding.spec)


def _kind(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(np.dtype(leaf.dtype))


def _show(leaf: Any) -> str:
    shape, dtype = _kind(leaf)
    return f"{dtype}{list(shape)}"


def _listing(what: str, paths: list[str]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{what}: {', '.join(paths[:_SHOWN])}{more}"


def _is_adapter(names: list[str]) -> bool:
    return "adapters" in names or ("layers" in names and names[-1] in ("a", "b"))


def _likely_cause(missing: list[str], extra: list[str], reshaped: list[str]) -> str:
    """Guesses which setting changed from the paths that disagree."""
    if any(_is_adapter(path.split("/")) for path in missing + extra + reshaped):
        return "It was saved with other LoRA settings; use the same rank and targets, or another --workdir"
    if missing + extra and all(path.startswith("opt") for path in missing + extra):
        return "It was saved with other optimizer settings; use the same ones, or another --workdir"
    if any("blocks" in path.split("/") or "wte" in path.split("/") for path in missing + extra + reshaped):
        return "It was saved with another model or vocabulary; use the config it was saved with, or another --workdir"
    return "It was saved by a run with other settings; use the config it was saved with, or another --workdir"
