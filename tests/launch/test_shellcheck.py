"""Every shell script of the project is clean under shellcheck, and shows its help."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "launch").rglob("*.sh"), *(ROOT / "launch").rglob("*.sbatch"), ROOT / ".ci" / "run"])
SHELLCHECK = pathlib.Path(sys.executable).parent / "shellcheck"


def shellcheck(*paths: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [SHELLCHECK, "--external-sources", "--source-path", ROOT, *paths]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_every_script_is_clean():
    assert len(SCRIPTS) >= 8
    done = shellcheck(*SCRIPTS, ROOT / "requirements" / "update.sh")
    assert done.returncode == 0, done.stdout


def test_a_careless_script_is_found(tmp_path):
    script = tmp_path / "careless.sh"
    script.write_text("#!/bin/bash\nrm -rf $1/*\n")
    assert "SC2086" in shellcheck(script).stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_is_for(path):
    first, second = path.read_text().splitlines()[:2]
    assert first in ("#!/usr/bin/env bash", "# shellcheck shell=bash")
    assert second.startswith("# ") and len(second) > 30
