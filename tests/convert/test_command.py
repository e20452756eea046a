"""The command line itself: help, arguments, progress, inspect."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from convert import __main__ as command
from convert import importer
from tests.convert.conftest import SMALL, RunDirectory, random_params

ROOT = pathlib.Path(__file__).parents[2]


def test_help_needs_no_jax():
    code = "import sys, convert.__main__ as c\ntry: c.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("import", "export", "verify", "inspect"):
        assert f"    {name} " in done.stdout


def test_the_module_runs_on_the_cpu_by_itself(small):
    """Without JAX_PLATFORMS, and so without touching an accelerator that another program may hold."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    arguments = [sys.executable, "-m", "convert", "inspect", str(small)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split()[:2] == ["folder", str(small)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND; `python -m convert --help` lists the arguments"),
        (["imprt"], "invalid choice: 'imprt'"),
        (["import", "--source", "x"], "required: --output; `python -m convert import --help` lists the arguments"),
        (["export", "--source", "x", "--output", "y", "--adapter", "z"], "unrecognized arguments: z"),
        (["inspect"], "required: DIR"),
        (["inspect", "nowhere"], "nowhere is not a folder; pass the folder of a checkpoint"),
        (["verify", "--source", "nowhere", "--converted", "nowhere"], "nowhere/config.json does not exist"),
        (["export", "--source", "nowhere", "--output", "out"], "nowhere is not a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(refused, arguments, sentence):
    assert sentence in refused(*arguments)


def test_an_error_of_the_operating_system(refused, monkeypatch, small, tmp_path):
    def fail(*arguments, **named):
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr(importer, "import_checkpoint", fail)
    line = refused("import", "--source", small, "--output", tmp_path / "out")
    assert line == "some/file: Permission denied"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def reported(stream, seconds) -> str:
    """What a progress shows of one report every half of a gigabyte and so many seconds."""
    now = [0.0]
    with command._Progress("import", stream, lambda: now[0]) as progress:
        for part in range(1, 33):
            now[0] += seconds
            progress.report(part * 500_000_000, 16_000_000_000)
    return stream.getvalue()


def test_progress_into_a_pipe_is_a_line_every_tenth():
    lines = reported(io.StringIO(), 1.25).splitlines()
    assert lines[0] == "import  12%  2.00 GB of 16.00 GB  400.00 MB/s  35s left"
    assert lines[-1] == "import 100%  16.00 GB of 16.00 GB  400.00 MB/s  40s" and len(lines) == 8


def test_progress_on_a_terminal_is_one_line():
    text = reported(Terminal(), 1.25)
    assert text.count("\n") == 1 and text.count("\r") == 32 and text.endswith("40s\033[K\n")


def test_progress_is_not_shown_more_often_than_one_can_read():
    assert reported(Terminal(), 0.01).count("\r") == 2
    assert len(reported(io.StringIO(), 0.01).splitlines()) == 1


def test_progress_of_nothing():
    stream = io.StringIO()
    with command._Progress("import", stream, lambda: 0.0) as progress:
        progress.report(0, 0)
    assert stream.getvalue() == "import 100%  0.00 MB of 0.00 MB  0.00 MB/s  0.0s\n"


def test_inspect_shows_each_kind(golden_dir, small, tmp_path, run):
    importer.import_checkpoint(small, tmp_path / "model")
    made = RunDirectory(tmp_path / "run", str(small), sft_rank=2, rl_rank=3)
    made.train("sft", random_params(SMALL), steps=(2, 3))
    shown = {
        golden_dir / "tiny_llada_sharded": ["Hugging Face layout", "weight files  3", "tensors       30", "188,864"],
        tmp_path / "model": ["imported model (Orbax)", f"folder {small}", "float32", "blocks/q_proj/weight"],
        made.folder: [
            "training run",
            f"began from   {small}",
            "stage sft    adapters of rank 2 on q_proj, attn_out, ff_proj, ff_out; checkpoints of steps 2, 3",
            "stage igpo   adapters of rank 3 on q_proj, attn_out, ff_proj, ff_out; checkpoints of steps none yet",
        ],
    }
    for folder, parts in shown.items():
        done = run("inspect", folder)
        assert done.code == 0
        for part in [*parts, "mask", "none: text commands need one", "wte/weight"]:
            assert part in done.out
