"""The evaluate command as real processes: killed without warning and started again, and two of them as one."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ("--suite", "own", "--protocol", "run", "--samples", 16, "--temperature", 0.7, "--batch", 8)


def start(*flags):
    command = [sys.executable, "-m", "igpo_jax.evaluate", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_an_undisturbed_one(run, run_dir, tmp_path):
    flags = [
        "--checkpoint",
        run_dir,
        *FLAGS,
        "--samples",
        128,
        "--cache",
        tmp_path / "cache",
        "--limit",
        5,
        "--cpu-devices",
        8,
    ]
    assert run("evaluate", *flags, "--output", tmp_path / "whole").code == 0
    killed = start(*flags, "--output", tmp_path / "killed")
    samples = tmp_path / "killed" / "samples.jsonl"
    while killed.poll() is None and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "report.json").exists() and samples.read_bytes().count(b"\n") < 640
    assert "going on from there" in finished(start(*flags, "--output", tmp_path / "killed"))
    assert samples.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_evaluate_as_one(run_dir, tmp_path):
    flags = ["--checkpoint", run_dir, *FLAGS, "--cache", tmp_path / "cache", "--limit", 3]
    finished(start(*flags, "--output", tmp_path / "one", "--cpu-devices", 2))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = [*flags, "--output", tmp_path / "two", "--cpu-devices", 1, "--coordinator", address, "--processes", 2]
    both = [start(*together, "--process-id", number) for number in (0, 1)]
    out = [finished(process) for process in both]
    assert "avg@16" in out[0] and "avg@16" not in out[1]
    assert (tmp_path / "two" / "samples.jsonl").read_bytes() == (tmp_path / "one" / "samples.jsonl").read_bytes()
