"""Plans by the real compilers for hardware that is not here; run with: bash launch/test.sh -m aot."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.aot

ROOT = pathlib.Path(__file__).parents[2]

#: A model of one layer in the dtype of accelerators, for the shortest compilation that still has every program.
SMALL = [
    *("--config.model.d_model=256", "--config.model.n_layers=1", "--config.model.n_heads=2"),
    *("--config.model.n_kv_heads=2", "--config.model.mlp_hidden_size=512", "--config.compute.dtype=bfloat16"),
    *("--config.sft.steps=0", "--config.mesh.data=1", "--config.prompt_length=80", "--config.rl.lora.rank=8"),
]


def plan(*arguments):
    """Exit code and output of the command, with nothing in its environment that a user would not have."""
    hidden = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "igpo_jax.plan", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, done.stdout


def check(code, text, kernel):
    found = json.loads(text)
    assert code == 0 and found["fits"] and found["attention"] == kernel
    rollout, _, update = found["programs"]
    for program in found["programs"]:
        assert program["headroom"] > 0 and program["traffic"]["by_kind"]["all-gather"] > 0
    # The state is donated: what an update returns takes the place of what it was given.
    assert update["memory"]["donated"] > 0 and update["memory"]["outputs"] < 0.01
    assert rollout["memory"]["beside"] > 0


def test_small_tpu():
    """Four v5e chips: the rollout, scoring and update programs, with Splash attention in the compiled text."""
    code, text = plan("--config=configs/quickstart.py", "--topology=v5e:2x2", *SMALL, "--config.mesh.fsdp=4", "--json")
    check(code, text, "splash")
    assert "not installed" not in json.loads(text)["versions"].values()


def test_the_search_for_the_most_rows_that_fit():
    """76,800 rows on four v5e chips: the compiler refuses all of them at once and a half, and takes a quarter."""
    code, text = plan(
        *("--config=configs/quickstart.py", "--topology=v5e:2x2", *SMALL, "--config.mesh.fsdp=4"),
        *("--config.rl.rollout.groups=9600", "--config.data.rl_rows=9600", "--search"),
    )
    best = "the most rows that fit are 4800 a device at a time: "
    assert code == 0 and text.startswith(f"{best}--config.rl.micro_batches=4 --config.rl.score_batches=4\n")
    assert text.splitlines()[-1].startswith("It fits: update has the least headroom")


def test_small_h100():
    """One host of eight H100s, with cuDNN attention in the compiled text."""
    code, text = plan("--config=configs/quickstart.py", "--topology=h100:1x8", *SMALL, "--config.mesh.fsdp=8", "--json")
    check(code, text, "cudnn")


def test_a_config_that_cannot_fit():
    """LLaDA-8B with every parameter trained does not fit on four v5e chips: exit code 1, and what to do."""
    code, text = plan(
        *("--config=configs/llada_8b/igpo.py:v5e-64,full", "--topology=v5e:2x2", "--config.mesh.fsdp=4"),
        *("--config.rl.micro_batches=64", "--config.rl.score_batches=64", "--config.rl.rollout.rows_per_program=4"),
    )
    assert code == 1 and text.count("\n") == 1 and "cannot fit on v5e:2x2" in text and "rl.lora.rank=128" in text
