"""launch/worker.sh on this machine: a training that runs detached, is followed, asked to leave, and read out."""

import shutil
import time

import pytest

from tests.launch.conftest import ROOT

#: Stands for the environment's Python: prints flags, and trains until it is told to go.
PYTHON = r"""#!/usr/bin/env bash
case "$2" in
igpo_jax.parallel.xla_flags)
    [ "$3" = tpu ] || { echo "error: no bundle '$3'" >&2; exit 2; }
    echo "export LIBTPU_INIT_ARGS='--one --two'"
    ;;
igpo_jax.train)
    echo "training with $LIBTPU_INIT_ARGS: ${*:3}"
    trap 'echo saved; exit 75' TERM
    until [ -f go ]; do sleep 0.05; done
    exit "$(cat go)"
    ;;
esac
"""


#: Python 3.12 as far as the set-up asks; it makes no environment.
NEW_PYTHON = r"""#!/usr/bin/env bash
echo "new $*" >>"$STUBS/calls"
[ "$2" != venv ] || exit 7
case "$2" in *print*) echo 3.12 ;; esac
"""


class Worker:
    def __init__(self, stubs, root):
        self.stubs, self.root = stubs, root

    def __call__(self, *arguments, **environment):
        return self.stubs.run("launch/worker.sh", *arguments, cwd=self.root, **environment)

    def outcome(self):
        return self("outcome").stdout.split()[2]

    def ended(self):
        deadline = time.monotonic() + 20
        while (found := self.outcome()) == "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found


@pytest.fixture
def worker(stubs, tmp_path):
    root = tmp_path / "igpo"
    shutil.copytree(ROOT / "launch", root / "launch")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    found = Worker(stubs, root)
    yield found
    (root / "go").write_text("0")
    found.ended()


def test_a_training_runs_on_after_the_connection_that_started_it(worker):
    assert worker.outcome() == "none"
    assert worker("start", "tpu", "--config=a", "--workdir=b c").returncode == 0
    assert worker.outcome() == "running"
    again = worker("start", "tpu", "--config=a")
    assert again.returncode == 0 and "training already runs here" in again.stdout
    (worker.root / "go").write_text("0")
    assert worker("follow").stdout.strip() == "training with --one --two: --config=a --workdir=b c"
    assert worker.ended() == "0"


def test_the_exit_code_of_a_failure_is_kept_until_the_next_start(worker):
    (worker.root / "go").write_text("3")
    worker("start", "tpu", "--config=a")
    assert worker.ended() == "3"
    (worker.root / "go").unlink()
    worker("start", "tpu", "--config=a")
    assert worker.outcome() == "running"


def test_stop_asks_the_training_itself_and_its_code_is_kept(worker):
    worker("start", "tpu", "--config=a")
    log = worker.root / "train.log"
    deadline = time.monotonic() + 20
    while "training with" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker("stop").returncode == 0
    assert worker.ended() == "75" and log.read_text().endswith("saved\n")
    assert "error: no training runs on this worker" in worker("stop").stderr


def test_a_training_that_ended_without_a_word_counts_as_killed(worker):
    (worker.root / "train.pid").write_text("999999999")
    assert worker.outcome() == "137"


def test_an_unknown_bundle_ends_before_anything_starts(worker):
    done = worker("exec", "nonsense", "--config=a")
    assert done.returncode == 2 and "no bundle 'nonsense'" in done.stderr


def test_bad_arguments_end_with_one_sentence(worker):
    assert "error: worker.sh does not know 'fly'; it knows install" in worker("fly").stderr
    assert "error: no training was started on this worker." in worker("follow").stderr


def test_a_machine_with_an_old_python_gets_a_newer_one_from_uv(worker, stubs, tmp_path):
    """python3 is 3.10 here; uv finds or fetches another, with which the environment is made."""
    new = tmp_path / "python3.12"
    new.write_text(NEW_PYTHON)
    new.chmod(0o755)
    stubs.install("python3").answer("python3 -c import sys; print*", "3.10").answer("python3 -c *", "!1")
    stubs.answer("python3 -m pip *", "").answer("python3 -m uv python find 3.12", "!2", str(new)).answer(
        "python3 -m uv *", ""
    )
    shutil.rmtree(worker.root / ".venv")
    (worker.root / "pyproject.toml").write_text("")
    done = worker("install", "tpu")
    assert "python3 -m uv python install --quiet 3.12" in stubs.calls
    assert any(call.startswith("new -m venv") for call in stubs.calls), done.stderr
    assert f"{new} could not make a virtual environment" in done.stderr and done.returncode == 1


def test_the_buckets_folders_stand_in_for_the_checkouts(worker, stubs):
    source = (worker.root / "launch" / "worker.sh").read_text()
    # The environment has a test of its own; here it is taken for made.
    (worker.root / "launch" / "worker.sh").write_text(
        source.replace("    prepare_environment", "    true prepare_environment")
    )
    (worker.root / "data").mkdir()
    stubs.install("gcsfuse", "mountpoint").answer("mountpoint *", "!1").answer("python3 *", "3.12")
    done = worker("install", "tpu", "my-bucket", IGPO_PYTHON="anything")
    assert done.returncode == 0, done.stderr
    assert f"gcsfuse --implicit-dirs my-bucket {worker.root}/bucket" in stubs.calls
    assert (worker.root / "runs").readlink().as_posix() == "bucket/runs" and (worker.root / "models").is_dir()
    assert not (worker.root / "data").is_symlink(), "what lies there already stays"
