"""Imports point one way: models <- diffusion <- rl <- training <- commands; the other rooms stand apart from these."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

#: What each room may import besides itself. Modules directly in igpo_jax are commands, but for BASE, open to all.
BASE = {"errors", "settings"}
ALLOWED = {
    "parallel": set(),
    "pages": set(),
    "rewriting": {"data", "rewards", "pages"},
    "rewards": set(),
    "data": set(),
    "models": {"parallel"},
    "diffusion": {"parallel", "models"},
    "rl": {"parallel", "models", "diffusion", "rewards", "data"},
    "convert": {"parallel", "models", "data"},
    "training": {"parallel", "models", "diffusion", "rewards", "data", "rl", "convert", "pages"},
}
ALLOWED["configs"] = ALLOWED["training"] | {"training"}
ALLOWED["reporting"] = {"training", "rewards", "data", "pages"}
ALLOWED["planning"] = ALLOWED["configs"]
ALLOWED["commands"] = ALLOWED["configs"] | {"configs", "rewriting", "reporting", "evaluation", "planning"}
ALLOWED["evaluation"] = ALLOWED["commands"] | {"commands"}

WITHOUT_JAX = {"rewards", "data", "pages", "rewriting"}
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
NNX_HOME = "igpo_jax/models/flax_adapter.py"


def module_name(path: str) -> str:
    """igpo_jax/rl/hints.py -> igpo_jax.rl.hints; a package's __init__ carries the package's name."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_names(path: str, source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a file, wherever it stands; ``from a import b`` gives ``a.b``."""
    package = module_name(path).split(".") if path.endswith("__init__.py") else module_name(path).split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "flax.nnx":
            found.append((node.lineno, "flax.nnx"))
    return found


def room_of(name: str) -> str | None:
    """The room a dotted name belongs to; None for foreign packages and for the base everybody may use."""
    head, *rest = name.split(".")
    if head == "convert":
        return "commands" if rest[:1] == ["__main__"] else "convert"
    if head == "configs":
        return "configs"
    if head != "igpo_jax" or not rest or rest[0] in BASE or rest[0].startswith("__"):
        return None
    return rest[0] if rest[0] in ALLOWED else "commands"


def violations(path: str, source: str) -> list[str]:
    """One sentence for each import that points the wrong way in a file of the project."""
    room = room_of(module_name(path))
    allowed = ALLOWED.get(room, set()) | {room}
    complaints = []
    for line, name in imported_names(path, source):
        target, where = room_of(name), f"{path}:{line}"
        if target is not None and target not in allowed:
            complaints.append(f"{where}: {room or 'the base'} must not import {target} ({name})")
        if room in WITHOUT_JAX and name.split(".")[0] in JAX_FAMILY:
            complaints.append(f"{where}: {room} must not import jax or what brings it ({name})")
        if f"{name}.".startswith("flax.nnx.") and path != NNX_HOME:
            complaints.append(f"{where}: flax.nnx is used only in {NNX_HOME}")
        if f"{name}.".startswith("igpo_jax.models.flax_adapter."):
            complaints.append(f"{where}: the core must not import the flax.nnx adapter")
        if name.split(".")[0] == "tensorflow":
            complaints.append(f"{where}: TensorFlow is no dependency")
    return complaints


def sources() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for package in ("igpo_jax", "convert", "configs")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def test_imports_point_one_way():
    complaints = [c for path in sources() for c in violations(path, (ROOT / path).read_text())]
    assert not complaints, "\n".join(complaints)


def test_every_room_is_looked_at():
    rooms = {room_of(module_name(path)) for path in sources()}
    assert rooms >= {"models", "diffusion", "rl", "training", "rewards", "data", "parallel", "convert"}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("igpo_jax/models/llada.py", "from igpo_jax.diffusion import denoise"),
        ("igpo_jax/models/llada.py", "from igpo_jax import diffusion"),
        ("igpo_jax/models/llada.py", "import igpo_jax.rl.hints"),
        ("igpo_jax/models/llada.py", "from ..training import state"),
        ("igpo_jax/models/__init__.py", "from ..rl import hints"),
        ("igpo_jax/diffusion/denoise.py", "def later():\n    from igpo_jax.rl import hints"),
        ("igpo_jax/rl/hints.py", "import importlib\nimportlib.import_module('igpo_jax.training.sft')"),
        ("igpo_jax/training/sft.py", "from igpo_jax import train"),
        ("igpo_jax/training/sft.py", "import configs.quickstart"),
        ("igpo_jax/parallel/mesh.py", "from igpo_jax.models import llada"),
        ("igpo_jax/rewards/pool.py", "from igpo_jax.data import templates"),
        ("igpo_jax/rewards/pool.py", "import jax.numpy as jnp"),
        ("igpo_jax/data/pipeline.py", "from jax import tree"),
        ("igpo_jax/data/pipeline.py", "from orbax import checkpoint"),
        ("igpo_jax/data/pipeline.py", "import tensorflow as tf"),
        ("igpo_jax/data/pipeline.py", "from igpo_jax.parallel import mesh"),
        ("igpo_jax/models/lora.py", "from flax import nnx"),
        ("igpo_jax/models/lora.py", "import flax.nnx"),
        ("igpo_jax/models/lora.py", "import flax\nflax.nnx.Module"),
        ("igpo_jax/train.py", "from flax.nnx import Module"),
        ("igpo_jax/train.py", "from igpo_jax.models import flax_adapter"),
        ("igpo_jax/errors.py", "from igpo_jax.models import llada"),
        ("convert/hf.py", "from igpo_jax.training import checkpoints"),
        ("convert/hf.py", "from igpo_jax import train"),
    ],
)
def test_a_wrong_import_is_found(path, line):
    assert len(violations(path, line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("igpo_jax/models/flax_adapter.py", "from flax import nnx"),
        ("igpo_jax/models/llada.py", "from igpo_jax.errors import UserError\nfrom igpo_jax.parallel import sharding"),
        ("igpo_jax/models/llada.py", "from . import config\nimport flax.struct\nimport jax"),
        ("igpo_jax/rl/rollout.py", "from igpo_jax.rewards import pool\nfrom igpo_jax.data import templates"),
        ("igpo_jax/train.py", "from igpo_jax.training import rl\nfrom convert import hf\nimport igpo_jax.evaluate"),
        ("convert/__main__.py", "from igpo_jax.training import checkpoints\nfrom convert import hf"),
        ("configs/quickstart.py", "from igpo_jax.training import recipe"),
    ],
)
def test_a_right_import_passes(path, line):
    assert violations(path, line) == []


def test_judge_workers_start_without_jax():
    """What a judge's worker imports, it pays for at every start: neither jax nor TensorFlow may come along."""
    names = [module_name(path) for path in sources() if path.startswith("igpo_jax/rewards/")]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(sorted({{"jax", "tensorflow", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "[]"
