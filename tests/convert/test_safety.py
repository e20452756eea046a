"""What is interrupted leaves nothing that loads, and the next attempt starts clean."""

import collections
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from convert import exporter, importer, staging
from convert.source import kind_of, load_model
from igpo_jax.errors import UserError
from tests.convert.conftest import SMALL, files_of, random_params, same_arrays

ROOT = pathlib.Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from convert import exporter, importer
source, output, work, share = sys.argv[1:]
def report(done, total):
    if done >= float(share) * total:
        os.kill(os.getpid(), signal.SIGKILL)
(importer.import_checkpoint if work == "import" else exporter.export_model)(source, output, report=report)
"""


def killed(source: pathlib.Path, output: pathlib.Path, work: str, share: float) -> None:
    """Runs an import or export in a process that is killed once ``share`` of the bytes is through."""
    code = [sys.executable, "-c", KILLED, str(source), str(output), work, str(share)]
    done = subprocess.run(code, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def nothing_loads(folder: pathlib.Path) -> bool:
    """No folder below, hidden ones included, passes for a checkpoint of any kind."""
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        try:
            kind_of(path)
        except UserError:
            continue
        return False
    return True


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_killed_import_leaves_nothing_that_loads(small, tmp_path, share):
    work = tmp_path / "work"
    work.mkdir()
    killed(small, work / "model", "import", share)
    assert not (work / "model").exists() and list(work.iterdir()) and nothing_loads(work)
    importer.import_checkpoint(small, work / "model")
    same_arrays(load_model(work / "model")[1], random_params(SMALL))
    assert [path.name for path in work.iterdir()] == ["model"]


def test_a_killed_export_leaves_nothing_that_loads(small, tmp_path):
    work = tmp_path / "work"
    importer.import_checkpoint(small, tmp_path / "model")
    work.mkdir()
    killed(tmp_path / "model", work / "back", "export", 0.5)
    assert not (work / "back").exists() and list(work.iterdir()) and nothing_loads(work)
    exporter.export_model(tmp_path / "model", work / "back")
    assert files_of(work / "back") == files_of(small)
    assert [path.name for path in work.iterdir()] == ["back"]


class Stop:
    """A report that stops the work at its n-th call."""

    def __init__(self, call: int, error: BaseException):
        self.left, self.error = call, error

    def __call__(self, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("call", [1, 2, 11, 21])
@pytest.mark.parametrize("work", [importer.import_checkpoint, exporter.export_model])
def test_ctrl_c_cleans_up(small, tmp_path, work, call):
    with pytest.raises(KeyboardInterrupt):
        work(small, tmp_path / "out", report=Stop(call, KeyboardInterrupt()))
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    work(small, tmp_path / "out")


def test_ctrl_c_ends_the_command_with_its_usual_code(small, tmp_path, run, monkeypatch):
    monkeypatch.setattr(importer, "import_checkpoint", Stop(1, KeyboardInterrupt()))
    done = run("inspect", small)
    assert done.code == 0

    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, "import_checkpoint", stopped)
    done = run("import", "--source", small, "--output", tmp_path / "out")
    assert done.code == 130 and "stopped by Ctrl-C" in done.err


def test_a_full_disk_in_the_middle_is_one_sentence(small, tmp_path):
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left.*\); check the free space"):
        importer.import_checkpoint(small, tmp_path / "out", report=Stop(3, OSError(28, "No space left on device")))
    assert not (tmp_path / "out").exists()


def test_disk_space_is_checked_before_anything_is_written(small, tmp_path, refused, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
    for command in ("import", "export"):
        line = refused(command, "--source", small, "--output", tmp_path / "out")
        assert "needs 67.13 MB of disk space, but 1.00 MB are free" in line
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_two_at_once_into_one_folder(small, tmp_path):
    output = tmp_path / "out"

    def report(done, total):
        with pytest.raises(UserError, match="is being written by another process"):
            importer.import_checkpoint(small, output)

    importer.import_checkpoint(small, output, report=report)
    assert kind_of(output) == "model"


def test_an_empty_folder_is_filled(small, tmp_path):
    (tmp_path / "out").mkdir()
    importer.import_checkpoint(small, tmp_path / "out")
    assert kind_of(tmp_path / "out") == "model"


def test_leftovers_of_any_kind_are_cleared(tmp_path):
    partial = tmp_path / ".out.partial"
    (partial / "params" / "d").mkdir(parents=True)
    (partial / "params" / "d" / "0123").write_text("half")
    (partial / "config.json").write_text("half")
    with staging.staged(tmp_path / "out", 0) as folder:
        assert [path.name for path in folder.iterdir()] == [".lock"]
        (folder / "new").touch()
    assert list(files_of(tmp_path / "out")) == ["new"]
    assert not partial.exists()
