"""Arrays in an Orbax checkpoint: what is there, whether it is what was expected, and reading it where it belongs."""

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from igpo_jax.errors import UserError

Path = str | os.PathLike[str]
T = TypeVar("T")

_SHOWN = 6

#: How long abandoned reads may take to end.
_ECHO_SECONDS = 0.5


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, as in ``blocks/q_proj/weight``."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def stored(path: Path) -> dict[str, Any]:
    """What an Orbax checkpoint holds: path -> something with a shape and a dtype. Reads no array.

    Raises:
      UserError: there is no readable checkpoint.
    """
    return _guarded(path, lambda: flatten(ocp.PyTreeCheckpointHandler().metadata(_absolute(path)).tree))


def restore(path: Path, wanted: Any, subset: bool = False) -> Any:
    """Reads arrays; each process reads only what its own devices hold.

    Args:
      path: folder of the Orbax checkpoint.
      wanted: tree of ``ShapeDtypeStruct``, whose shardings say where each array goes (the first device without one)
        and whose dtypes say what it is converted to while it is read.
      subset: whether the checkpoint may hold more than ``wanted``.

    Returns:
      The arrays in the tree of ``wanted``.

    Raises:
      UserError: the checkpoint is damaged.
    """
    place = SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or place), wanted
    )
    arguments = ocp.args.PyTreeRestore(
        wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=subset
    )
    return _guarded(path, lambda: ocp.PyTreeCheckpointHandler().restore(_absolute(path), args=arguments))


def check(found: Mapping[str, Any], expected: Mapping[str, Any], source: str, subset: bool = False) -> None:
    """Compares paths and shapes (and dtypes where ``expected`` has them) with what they should be.

    Args:
      found: path -> something with a shape and a dtype, as ``stored`` returns it.
      expected: the same, as the model's configuration says.
      source: the checkpoint's name, for messages.
      subset: whether more than expected may be there.

    Raises:
      UserError: listing missing, extra and different paths, with the likely cause.
    """
    missing = [path for path in expected if path not in found]
    extra = [] if subset else [path for path in found if path not in expected]
    reshaped = [path for path in expected if path in found and _kind(found[path]) != _kind(expected[path])]
    if not missing + extra + reshaped:
        return
    shown = [f"{path} (found {_show(found[path])}, expected {_show(expected[path])})" for path in reshaped]
    parts = [_listing("missing", missing), _listing("not expected", extra), _listing("different", shown)]
    raise UserError(
        f"{source} does not fit its configuration: {'; '.join(part for part in parts if part)}. "
        f"{_likely_cause(missing, extra, found, expected)}"
    )


def _likely_cause(missing: list[str], extra: list[str], found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if any(part.isdigit() for path in extra for part in path.split("/")):
        return "Its layers are stored one by one, but this format stacks them; import the original checkpoint again"
    if any(path.endswith("/bias") for path in missing + extra):
        return "The bias settings of config.json are not the checkpoint's; restore the config.json it came with"
    if set(missing + extra) == {"ff_out/weight"}:
        return "weight_tying of config.json is not the checkpoint's; restore the config.json it came with"
    both = [path for path in expected if path in found]
    if not missing + extra and all(tuple(found[path].shape) == tuple(expected[path].shape) for path in both):
        return "Only dtypes differ, so the manifest is another checkpoint's; import the original checkpoint again"
    if any(_swapped(found[path].shape, expected[path].shape) for path in both):
        return "Its matrices are transposed, so another program wrote it; import the original checkpoint again"
    if missing and not extra:
        return "The folder is incomplete; copy it again, or import the original checkpoint again"
    return "config.json is another model's; restore the config.json that the checkpoint came with"


def _swapped(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return found != expected and tuple(found[:-2]) + tuple(found[-2:][::-1]) == tuple(expected)


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


def _guarded(path: Path, read: Callable[[], T]) -> T:
    """What ``read`` returns; a failure as a UserError, without what Python prints of the reads abandoned."""
    try:
        return read()
    except Exception as error:  # what damage raises depends on the damaged file
        failure = unreadable(path, error)
    # The error and all that it holds is gone here, so that what ends now ends unheard.
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        time.sleep(_ECHO_SECONDS)
        gc.collect()
    finally:
        sys.unraisablehook = hook
    raise failure


def _absolute(path: Path) -> epath.Path:
    return epath.Path(os.path.abspath(path))


def unreadable(path: Path, error: Exception) -> UserError:
    """What to tell a user of an array or a checkpoint that cannot be read."""
    lines = str(error).strip().splitlines() or [""]
    return UserError(f"{path} cannot be read ({type(error).__name__}: {lines[0][:200]}); copy it or import it again")
