"""launch/slurm_h100.sbatch against stand-ins for srun and scontrol: what starts, and what each exit code leads to."""

import re
import shutil

import pytest

from tests.launch.conftest import ROOT

RUN = ("--config=configs/llada_8b/igpo.py:h100-64", "--workdir=runs/a b")


@pytest.fixture
def checkout(tmp_path, stubs):
    """A checkout whose worker.sh writes down what it was asked."""
    root = tmp_path / "checkout"
    (root / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "cluster.sh", root / "launch")
    stubs.install("srun", "scontrol")
    (root / "launch" / "worker.sh").write_text('printf "worker %s %s\\n" "$IGPO_VENV" "$*" >>"$STUBS/calls"\n')
    return root


def submit(stubs, checkout, *arguments, tmp_path=None, **environment):
    """Runs a copy of the script from another folder, as SLURM does."""
    spool = stubs.folder / "spool"
    spool.mkdir(exist_ok=True)
    shutil.copy(ROOT / "launch" / "slurm_h100.sbatch", spool / "slurm_script")
    variables = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "71", **environment}
    return stubs.run(str(spool / "slurm_script"), *arguments, cwd=spool, **variables)


def srun_call(stubs):
    (call,) = [call for call in stubs.calls if call.startswith("srun ")]
    return call


def test_the_environment_is_made_once_and_every_task_starts_the_same_command(stubs, checkout):
    done = submit(stubs, checkout, *RUN)
    assert done.returncode == 0, done.stderr
    assert stubs.calls[0] == f"worker {checkout}/.venv-cuda install cuda"
    assert srun_call(stubs).endswith("bash launch/worker.sh exec h100 " + " ".join(RUN))
    assert "scontrol" not in " ".join(stubs.calls)


def test_tasks_see_all_gpus_of_their_node_and_are_not_killed_while_they_save(stubs, checkout):
    submit(stubs, checkout, *RUN)
    call = srun_call(stubs)
    assert "--kill-on-bad-exit=0 --wait=600" in call and "gpu" not in call.split("bash")[0]
    text = (ROOT / "launch" / "slurm_h100.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["signal"] == "TERM@1200", "to the tasks, not to the shell alone (B:)"
    assert "requeue" in options and options["open-mode"] == "append"
    # srun of SLURM 22.05 and newer gives a task one CPU unless it is told again.
    assert f"--cpus-per-task={options['cpus-per-task']} " in call


def test_tasks_get_the_cpus_that_the_job_was_submitted_with(stubs, checkout):
    submit(stubs, checkout, *RUN, SLURM_CPUS_PER_TASK="7")
    assert "--cpus-per-task=7 " in srun_call(stubs)


def test_a_training_that_saved_and_left_is_queued_again(stubs, checkout):
    done = submit(stubs.answer("srun *", "!75"), checkout, *RUN)
    assert done.returncode == 75
    assert stubs.calls[-1] == "scontrol requeue 71"


def test_a_job_that_slurm_took_back_itself_is_no_mistake(stubs, checkout):
    done = submit(stubs.answer("srun *", "!75").answer("scontrol *", "!1"), checkout, *RUN)
    assert done.returncode == 75 and "where it is not queued already, submit it once more" in done.stderr


@pytest.mark.parametrize("code", ["1", "2", "130", "137"])
def test_a_training_that_failed_is_not_queued_again(stubs, checkout, code):
    done = submit(stubs.answer("srun *", f"!{code}"), checkout, *RUN)
    assert done.returncode == int(code)
    assert stubs.calls[-1].startswith("srun")


def test_restarts_have_a_limit(stubs, checkout):
    stubs.answer("srun *", "!75")
    done = submit(stubs, checkout, *RUN, IGPO_RESTARTS="3", SLURM_RESTART_COUNT="3")
    assert done.returncode == 2 and "queued again 3 times, as often as IGPO_RESTARTS allows" in done.stderr
    assert submit(stubs, checkout, *RUN, IGPO_RESTARTS="3", SLURM_RESTART_COUNT="2").returncode == 75
    assert stubs.calls[-1] == "scontrol requeue 71"


def test_an_environment_that_cannot_be_made_ends_the_job(stubs, checkout):
    (checkout / "launch" / "worker.sh").write_text("exit 1\n")
    done = submit(stubs, checkout, *RUN)
    assert done.returncode == 2 and "error: the environment could not be set up" in done.stderr
    assert not stubs.calls


def test_bundle_and_environment_can_be_chosen(stubs, checkout):
    submit(stubs, checkout, *RUN, IGPO_FLAGS="h100_tensor", IGPO_VENV="/scratch/venv")
    assert stubs.calls[0].startswith("worker /scratch/venv ") and "exec h100_tensor" in srun_call(stubs)


def test_a_dry_run_needs_no_slurm_and_does_nothing(stubs):
    done = stubs.run("launch/slurm_h100.sbatch", "--dry-run", *RUN)
    assert done.returncode == 0 and not stubs.calls
    shown = [line for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert shown[0] == "+ bash launch/worker.sh install cuda"
    assert shown[1].startswith("+ srun ") and shown[1].endswith("'--workdir=runs/a b'")
    assert shown[2] == "+ scontrol requeue JOB"


def test_bad_arguments_end_with_one_sentence(stubs, checkout):
    done = submit(stubs, checkout, "--config=a")
    assert done.returncode == 2 and done.stderr.startswith("error: the training's --config or --workdir is missing")
    done = stubs.run("launch/slurm_h100.sbatch", "--dry-run", "--config", "a", "--workdir", "b")
    assert done.returncode == 0 and "h100 --config a --workdir b\n" in done.stderr
    done = stubs.run("launch/slurm_h100.sbatch", *RUN)
    assert done.returncode == 2 and done.stderr.startswith("error: this is a job script; submit it with sbatch")
    done = submit(stubs, checkout.parent, *RUN)
    assert done.returncode == 2 and "is not a checkout of this project; submit from its folder" in done.stderr
    done = submit(stubs, checkout, *RUN, IGPO_RESTARTS="many")
    assert done.returncode == 2 and "IGPO_RESTARTS is 'many', expected a number" in done.stderr
    (stubs.bin / "srun").unlink()
    done = submit(stubs, checkout, *RUN)
    assert done.returncode == 2 and "srun was not found on PATH" in done.stderr
    assert not stubs.calls


def test_help_is_the_comment_at_its_head(stubs):
    done = stubs.run("launch/slurm_h100.sbatch", "--help")
    assert done.returncode == 0 and done.stdout.startswith("Trains on H100 nodes under SLURM")
