"""The training command as a user starts it: the quickstart made tiny, stopped by signals, continued to its end."""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 20
TINY = {
    "model.d_model": 32,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 2,
    "model.mlp_hidden_size": 48,
    "data.sft_rows": 64,
    "data.rl_rows": 32,
    "data.test_rows": 16,
    "sft.steps": 4,
    "sft.batch_size": 16,
    "sft.log_every": 2,
    "sft.optimizer.warmup_steps": 0,
    "rl.steps": STEPS,
    "rl.optimizer.warmup_steps": 0,
    "rl.rollout.groups": 4,
    "rl.rollout.group_size": 4,
    "rl.rollout.rows_per_program": 16,
    "evaluation.every": 0,
    "evaluation.rows_per_program": 16,
    "checkpoints.every": 2,
    "judge.workers": 1,
    "cpu_devices": 2,
}


@pytest.fixture
def command(tmp_path):
    """Starts ``python -m igpo_jax.train`` on the tiny quickstart."""

    def start(workdir, *arguments):
        overrides = [f"--config.{name}={value}" for name, value in TINY.items()]
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        program = [sys.executable, "-m", "igpo_jax.train", "--config=configs/quickstart.py", f"--workdir={workdir}"]
        return subprocess.Popen(
            [*program, *overrides, *arguments],
            cwd=ROOT,
            env=os.environ | compiled,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def logged(workdir):
    """(stage, step) of every finished line of the log."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(row["stage"], row["step"]) for row in map(json.loads, lines)]


def complaints(err):
    """What stands on the error stream, but for the hint that the disk is slower than the checkpoints are frequent."""
    return "".join(line for line in err.splitlines(True) if not line.startswith("WARNING: Waiting for previous save"))


def stopped(command, workdir, step, number):
    """Starts a run and sends it a signal after an RL step; (process, output, errors)."""
    process, end = command(workdir), time.monotonic() + 300
    while ("igpo", step) not in logged(workdir):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run is not getting anywhere"
        time.sleep(0.05)
    process.send_signal(number)
    return process, *process.communicate(timeout=300)


def saved_step(out):
    """The step that the last line of a stopped run tells of."""
    return int(re.fullmatch(rf"igpo: step (\d+) of {STEPS} is saved", out.splitlines()[-1])[1])


@pytest.mark.slow
def test_a_run_is_stopped_by_signals_and_goes_on(command, tmp_path):
    workdir = tmp_path / "run"
    first, out, err = stopped(command, workdir, 3, signal.SIGTERM)
    assert first.returncode == 75, err
    assert complaints(err) == (
        "SIGTERM: saving at the next safe point, then leaving; a second signal ends at once\n"
        "stopped by SIGTERM; the same command goes on from here\n"
    )
    assert "sft: pass@1" in out and "igpo: pass@1" not in out
    assert not (workdir / "summary.json").exists()
    reached = saved_step(out)
    assert 3 <= reached < STEPS and (workdir / "checkpoints" / "igpo" / str(reached)).is_dir()

    refused = command(workdir, "--config.cpu_devices=1", "--config.seed=4")
    out, err = refused.communicate(timeout=120)
    assert (refused.returncode, out) == (2, "")
    assert err == (
        f"error: {workdir} holds a run with other settings: seed 0 -> 4; use another --workdir, go on with what the "
        "run has, or take the changes with --resume-with-changes\n"
    )
    refused = command(workdir, "--config.cpu_devices=1")
    assert refused.wait(timeout=120) == 2
    assert "devices of the run 2 -> 1; " in (err := refused.stderr.read()) and "--allow-other-devices" in err

    second, out, err = stopped(command, workdir, reached + 2, signal.SIGINT)
    assert second.returncode == 130, err
    assert complaints(err).endswith("stopped by Ctrl-C; the same command goes on from here\n")
    assert f"igpo: going on from step {reached} of {STEPS}\n" in out
    reached = saved_step(out)

    third = command(workdir)
    out, err = third.communicate(timeout=300)
    assert (third.returncode, complaints(err)) == (0, "")
    steps = [
        int(line.split()[1].partition("/")[0]) for line in out.splitlines() if line.startswith("igpo  ") and "/" in line
    ]
    assert steps == list(range(reached + 1, STEPS + 1)), "it went on from where it was stopped"
    assert not any(line.startswith("sft  ") and f"/{TINY['sft.steps']}" in line for line in out.splitlines())
    counts = collections.Counter(logged(workdir))
    assert counts == collections.Counter(
        [
            ("eval", 0),
            ("sft", 2),
            ("sft", 4),
            ("eval", 4),
            *(("igpo", step) for step in range(1, STEPS + 1)),
            ("eval", STEPS),
        ]
    )
    assert [row["stage"] for row in json.loads((workdir / "summary.json").read_text())] == ["start", "sft", "igpo"]
    assert (workdir / "plots" / "overview.png").exists()


def test_bad_data_is_one_sentence_on_the_screen(command, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "What is 1 + 1?", "answer": "2", "reasoning": "1 + 1 = 2"}\n{"question": }\n')
    process = command(tmp_path / "run", "--config.data.name=jsonl", f"--config.data.path={data}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith(f"error: {data} line 2 is not JSON") and err.count("\n") == 1


@pytest.mark.slow
def test_a_check_runs_every_stage_and_leaves_nothing(command, tmp_path):
    process = command(tmp_path / "run", "--check", "--config.rl.micro_batches=2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "sft: finished already" in out and "igpo: finished already" in out
    assert out.rstrip().splitlines()[-1].startswith("check: 3 evaluations, every stage ran, was saved and restored")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data"]
