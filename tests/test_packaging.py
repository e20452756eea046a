"""What the project declares, locks, ships and says: dependencies, lock files, the wheel, and the set-up's manners."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "requirements").glob("lock-*.txt"))

#: Distributions whose module carries another name.
MODULES = {"absl-py": "absl", "orbax-checkpoint": "orbax"}
#: May be declared although no file imports them, each for the reason in docs/dependencies.md.
IMPORTED_BY_OTHERS = {"array-record", "importlib-resources", "jinja2", "sympy"}


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def module_of(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


def locked(path: pathlib.Path) -> dict[str, str]:
    pins = dict(line.split("==") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def tracked() -> list[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def foreign_imports() -> set[str]:
    """First part of every module that the shipped packages import and that is neither theirs nor Python's."""
    names = set()
    for package in ("igpo_jax", "convert", "configs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"igpo_jax", "convert", "configs"}


def test_every_import_is_declared():
    requirements = declared(*PROJECT["optional-dependencies"])
    provided = {module_of(name) for name in requirements}
    assert {name.lower() for name in foreign_imports()} <= provided


def test_every_dependency_is_imported_or_explained():
    imported = {name.lower() for name in foreign_imports()}
    unused = {n for n in declared() if module_of(n) not in imported}
    assert unused <= IMPORTED_BY_OTHERS


def test_every_dependency_has_its_line_in_the_docs():
    lines = re.findall(r"^\| `?([\w-]+)`? \|", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE)
    documented = {canonicalize_name(name) for name in lines} - {"package", "extra"}
    assert documented == set(declared()) | set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_holds_exact_versions_inside_the_ranges(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    pins = locked(path)
    for name, requirement in declared("test").items():
        assert name in pins and requirement.specifier.contains(pins[name]), f"{path.name}: {requirement}"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_is_for_the_cpu_and_light(path):
    heavy = {"torch", "tensorflow", "tensorflow-cpu", "libtpu", "triton"}
    assert not [name for name in locked(path) if name in heavy or name.startswith(("nvidia-", "jax-cuda"))]


def test_both_python_lines_are_locked():
    assert [path.stem for path in LOCKS] == ["lock-cpu-py311", "lock-cpu-py312"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_leaves_nothing_open(path):
    """Whatever the installed packages require is in their lock file, so the set-up resolves nothing by itself."""
    line = f"3.{path.stem.removeprefix('lock-cpu-py3')}"
    environment = {"extra": "", "python_version": line, "python_full_version": f"{line}.0"}
    pins, missing = locked(path), []
    for name, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            requirements = [Requirement(text) for text in distribution.requires or []]
            needed = [r.name for r in requirements if r.marker is None or r.marker.evaluate(environment)]
            missing += [f"{name} needs {other}" for other in needed if canonicalize_name(other) not in pins]
    assert not missing


def test_the_wheel_holds_every_module(tmp_path):
    source = tmp_path / "source"
    for name in ("igpo_jax", "convert", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".py", ".json", ".txt", ".js", ".css")
    shipped = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.suffix in kinds}
    assert {n for n in shipped if n.startswith(("igpo_jax/", "convert/", "configs/"))} <= packed


MACHINE = re.compile(
    rb"(?<![\w.~}])/(?:work|root|home|Users|opt|farm)/\w"  # a path of somebody's machine
    rb"|\.\./shared\b|/tmp/\w"
    rb"|https?://[^\s\"')>]*(?:pypi|pythonhosted|/simple\b)|-index[-]url|--find[-]links|libtpu[_]releases"  # an index
)


def test_no_file_mentions_a_machine_or_a_package_index():
    found = []
    for name in tracked():
        found += [f"{name}: {m.group().decode()}" for m in MACHINE.finditer((ROOT / name).read_bytes())]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        b"see /ho" + b"me/ada/data",
        b"cd /wo" + b"rk/main",
        b"open('/ro" + b"ot/x')",
        b"../sh" + b"ared/golden",
        b"cat /t" + b"mp/notes",
        b"--extra-index-" + b"url=x",
        b"https://files.python" + b"hosted.org/packages/x.whl",
        b"http://10.0.0.1/sim" + b"ple/",
    ],
)
def test_such_a_mention_is_found(text):
    assert MACHINE.search(text)


# --- the set-up, on a stand-in interpreter that records what it is asked ---

PYTHON = """#!/bin/bash
# Stands for a Python: answers the questions of launch/environment.sh, and builds environments of itself.
case "$*" in
*version_info\\[:2\\]*) echo "${FAKE_VERSION:-3.12}" ;;
*'version_info < (3, 11)'*) [ "${FAKE_VERSION:-3.12}" != 3.9 ] ;;
'-c ') ;;
*'import ensurepip'*) [ -z "${FAKE_BARE:-}" ] ;;
'-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$FAKE_LOG" ;;
*'-m pip '*)
    echo "pip ${*: -1}" >>"$FAKE_LOG"
    case "${FAKE_PIP:-}" in
    offline) echo "Retrying after NewConnectionError: host='secret.example' https://secret.example/sim""ple"; exit 1 ;;
    broken) echo "ERROR: no wheel at https://secret.example/x"; exit 1 ;;
    killed) kill -9 $PPID ;;
    esac ;;
*) echo "run $*" >>"$FAKE_LOG" ;;
esac
"""
TOOLS = ["bash", "cat", "cp", "cut", "dirname", "flock", "grep", "ls", "mkdir", "mv", "nproc", "rm", "sed", "sha256sum"]
TOOLS += ["tail"]


class Checkout:
    """A copy of the launch scripts beside an interpreter that only pretends, on a PATH with nothing else to find."""

    def __init__(self, folder: pathlib.Path):
        self.root, self.bin, self.log = folder / "a checkout", folder / "bin", folder / "log"
        for name in ("launch", "requirements"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copyfile(ROOT / "pyproject.toml", self.root / "pyproject.toml")
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add_python("python3")

    def add_python(self, name: str) -> None:
        (self.bin / name).write_text(PYTHON)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        environment = {"PATH": str(self.bin), "HOME": str(self.root), "FAKE_LOG": str(self.log), **variables}
        command = [str(self.bin / "bash"), str(self.root / "launch" / script), *arguments]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)

    def did(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_first_run_sets_up_and_the_second_goes_straight_to_work(checkout):
    train = "run -m igpo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart"
    assert checkout.run("quickstart.sh").returncode == 0
    assert checkout.did() == ["venv", "pip setuptools>=77", f"pip {checkout.root}", train]
    second = checkout.run("quickstart.sh", "--config.seed=3")
    assert checkout.did() == [f"{train} --config.seed=3"]
    assert second.stdout == second.stderr == ""


def test_own_config_and_workdir_replace_the_default_ones(checkout):
    checkout.run("quickstart.sh", "--config=configs/quickstart.py:grpo", "--workdir", "elsewhere")
    assert checkout.did()[-1] == "run -m igpo_jax.train --config=configs/quickstart.py:grpo --workdir elsewhere"


def test_tests_add_their_extra_and_keep_it(checkout):
    checkout.run("quickstart.sh")
    assert checkout.run("test.sh", "-k", "hints").returncode == 0
    assert checkout.did()[-2] == f"pip {checkout.root}[test]"
    assert re.fullmatch(r"run -m pytest -n \d+ --dist loadfile --no-loadscope-reorder -k hints", checkout.did()[-1])
    checkout.run("quickstart.sh")
    assert len(checkout.did()) == 1


def test_an_interrupted_set_up_starts_over(checkout):
    assert checkout.run("quickstart.sh", FAKE_PIP="killed").returncode != 0
    leftover = checkout.root / ".venv" / "half-copied"
    leftover.touch()
    assert checkout.run("quickstart.sh").returncode == 0
    assert checkout.did()[0] == "venv" and not leftover.exists()


def test_a_changed_lock_is_installed_in_place(checkout):
    checkout.run("test.sh")
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    with (checkout.root / "requirements" / "lock-cpu-py312.txt").open("a") as lock:
        lock.write("another==1\n")
    assert checkout.run("quickstart.sh").returncode == 0
    assert f"pip {checkout.root}[test]" in checkout.did() and kept.exists()


def test_a_moved_checkout_or_another_python_is_set_up_anew(checkout):
    checkout.run("quickstart.sh")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    checkout.run("quickstart.sh")
    assert checkout.did()[0] == "venv"
    checkout.run("quickstart.sh", FAKE_VERSION="3.11")
    assert checkout.did()[0] == "venv"


def test_a_python_line_without_lock_takes_the_ranges(checkout):
    assert "No lock file is used for Python 3.13" in checkout.run("quickstart.sh", FAKE_VERSION="3.13").stderr


def test_an_environment_of_the_users_own_is_left_alone(checkout):
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "mine").touch()
    done = checkout.run("quickstart.sh")
    assert done.returncode == 1 and "was not made by this script" in done.stderr and checkout.did() == []
    assert checkout.run("quickstart.sh", IGPO_VENV="another").returncode == 0
    assert (checkout.root / ".venv" / "mine").exists() and (checkout.root / "another" / "igpo-setup").exists()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"FAKE_VERSION": "3.9"}, "Python 3.9 is too old, 3.11 or newer is needed"),
        ({"FAKE_BARE": "yes"}, "Python 3.12 has no venv module; install it"),
        ({"IGPO_PYTHON": "python9"}, "no Python that runs was found (tried: python9)"),
        ({"FAKE_PIP": "offline"}, "the Python package index could not be reached"),
        ({"FAKE_PIP": "broken"}, "pip could not install the dependencies"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(checkout, variables, sentence):
    done = checkout.run("quickstart.sh", **variables)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {sentence}")
    assert "secret.example" not in done.stderr + "".join(p.read_text() for p in checkout.root.glob(".venv/pip.log"))
    assert not [line for line in checkout.did() if line.startswith("run ")]


def test_scripts_may_be_run(tmp_path):
    for name in (".ci/run", "launch/quickstart.sh", "launch/test.sh", "requirements/update.sh"):
        assert os.access(ROOT / name, os.X_OK)
        assert subprocess.run(["bash", "-n", name], cwd=ROOT, check=False).returncode == 0
