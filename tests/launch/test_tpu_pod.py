"""launch/tpu_pod.sh against a gcloud that writes down what it was asked: the whole way, refusals, preemptions."""

import shlex
import shutil
import subprocess

import pytest

from tests.launch.conftest import ROOT

WHERE = ("--name=igpo", "--zone=us-east5-b", "--poll=0")
TRAIN = ("--", "--config=configs/llada_8b/igpo.py:v6e-64", "--workdir=runs/a b")
LIST = "gcloud compute tpus queued-resources list *"
OUTCOME = "*worker.sh outcome*"


def pod(stubs, command, *arguments, **environment):
    return stubs.run("launch/tpu_pod.sh", command, *arguments, **environment)


def run(stubs, *arguments):
    stubs.install("gcloud")
    return pod(stubs, "run", *WHERE, "--accelerator=v6e-64", "--bucket=b", *arguments, *TRAIN)


def verbs(stubs):
    """What was asked of gcloud, in a word each; looks at the state left out."""
    names = (
        "create",
        "delete",
        "describe",
        "scp",
        "worker.sh install",
        "worker.sh start",
        "worker.sh follow",
        "outcome",
    )
    found = [next((name for name in names if name in call), "look") for call in stubs.calls]
    return [name.removeprefix("worker.sh ") for name in found if name != "look"]


ONCE = ["scp", "install", "start", "follow", "outcome"]


def test_the_whole_way(stubs):
    stubs.answer(LIST, "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE").answer(
        OUTCOME, "outcome w0 0\\noutcome w1 0"
    )
    done = run(stubs)
    assert done.returncode == 0, done.stderr
    assert verbs(stubs) == ["create", "describe", *ONCE]
    create = next(call for call in stubs.calls if "create" in call)
    assert "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --node-id=igpo" in create
    (start,) = [call for call in stubs.calls if "worker.sh start" in call]
    assert start.endswith("--worker=all --command=bash igpo/launch/worker.sh start tpu "
                          "--config=configs/llada_8b/igpo.py:v6e-64 '--workdir=runs/a b'")  # fmt: skip
    assert "worker.sh install tpu b" in " ".join(stubs.calls)
    assert "igpo: PROVISIONING" in done.stderr and "give it back with: bash launch/tpu_pod.sh delete" in done.stderr


def test_slices_that_are_there_are_taken_and_given_back_when_asked(stubs):
    stubs.answer(LIST, "ACTIVE").answer(OUTCOME, "outcome w0 running", "outcome w0 0")
    done = run(stubs, "--delete-after")
    assert done.returncode == 0, done.stderr
    assert verbs(stubs) == ["describe", *ONCE, "follow", "outcome", "delete"]
    assert "--force --quiet" in stubs.calls[-1]


def test_a_refusal_is_said_and_nothing_more_is_tried(stubs):
    stubs.answer(LIST, "").answer("*create*", "!1")
    done = run(stubs)
    assert done.returncode == 2
    assert done.stderr.endswith("stub: refused\nerror: the slices were refused; gcloud's reason is above\n")
    assert verbs(stubs) == ["create"]


def test_a_zone_without_capacity_is_said(stubs):
    stubs.answer(LIST, "", "FAILED")
    done = run(stubs)
    assert done.returncode == 2 and "error: Google could not provide igpo; try another zone" in done.stderr


def test_a_worker_that_fails_is_named_with_its_exit_code(stubs):
    stubs.answer(LIST, "ACTIVE").answer(OUTCOME, "outcome w0 0\\noutcome w1 3\\noutcome w2 0")
    done = run(stubs, "--delete-after")
    assert done.returncode == 3
    assert "error: the training failed on w1 with exit code 3" in done.stderr
    assert "delete" not in verbs(stubs), "its logs are still wanted"


def test_after_a_preemption_the_same_run_goes_on(stubs):
    """The slices vanish while the training runs: deleted, asked for again, and the same command starts again."""
    stubs.answer(LIST, "", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE").answer(OUTCOME, "!255", "outcome w0 0")
    done = run(stubs)
    assert done.returncode == 0, done.stderr
    assert verbs(stubs) == ["create", "describe", *ONCE, "delete", "create", "describe", *ONCE]
    starts = [call for call in stubs.calls if "worker.sh start" in call]
    assert starts[0] == starts[1]
    assert "igpo was taken away" in done.stderr and "going on after preemption 1" in done.stderr


def test_slices_that_vanish_before_the_training_starts_are_asked_for_again(stubs):
    stubs.answer(LIST, "", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE").answer("*worker.sh install*", "!1", "")
    done = run(stubs.answer(OUTCOME, "outcome w0 0"))
    assert done.returncode == 0, done.stderr
    assert verbs(stubs)[:6] == ["create", "describe", "scp", "install", "delete", "create"]


def test_a_training_that_was_asked_to_leave_starts_again_on_the_same_slices(stubs):
    stubs.answer(LIST, "ACTIVE").answer(OUTCOME, "outcome w0 75\\noutcome w1 75", "outcome w0 0\\noutcome w1 0")
    done = run(stubs)
    assert done.returncode == 0, done.stderr
    assert verbs(stubs) == ["describe", *ONCE, "describe", *ONCE]


def test_preemptions_have_a_limit(stubs):
    stubs.answer(LIST, "ACTIVE").answer(OUTCOME, "outcome w0 75")
    done = run(stubs, "--restarts=2")
    assert done.returncode == 2
    assert "igpo was preempted 3 times, which is more than --restarts=2" in done.stderr
    assert verbs(stubs).count("start") == 3


def test_workers_that_do_not_answer_are_given_up(stubs):
    stubs.answer(LIST, "ACTIVE").answer(OUTCOME, "!255")
    done = run(stubs)
    assert done.returncode == 2 and "do not answer, although it is ACTIVE" in done.stderr
    assert verbs(stubs).count("outcome") == 5


def test_an_install_that_fails_is_said(stubs):
    done = run(stubs.answer(LIST, "ACTIVE").answer("*scp*", "!1"))
    assert done.returncode == 2 and "error: the project could not be installed on every worker" in done.stderr
    assert "start" not in verbs(stubs)


def test_several_slices_run_one_command(stubs):
    stubs.answer(LIST, "", "ACTIVE").answer(OUTCOME, "outcome w0 0")
    done = run(stubs, "--slices=2", "--spot", "--project=mine")
    assert done.returncode == 0, done.stderr
    create = next(call for call in stubs.calls if "create" in call)
    assert "--node-count=2 --node-prefix=igpo --spot" in create and "--project=mine" in create
    starts = sorted(call for call in stubs.calls if "worker.sh start" in call)
    assert ["ssh igpo-0" in starts[0], "ssh igpo-1" in starts[1], len(starts)] == [True, True, 2]
    assert all("start tpu_multislice" in start for start in starts)
    assert verbs(stubs).count("follow") == 1


@pytest.mark.parametrize(
    ("accelerator", "runtime", "bundle"),
    [("v5litepod-64", "v2-alpha-tpuv5-lite", "v5e"), ("v5p-128", "v2-alpha-tpuv5", "tpu")],
)
def test_image_and_flags_follow_from_the_accelerator(stubs, accelerator, runtime, bundle):
    done = pod(stubs, "run", *WHERE, f"--accelerator={accelerator}", "--dry-run", *TRAIN)
    assert f"--runtime-version={runtime}" in done.stderr and f"worker.sh start {bundle} " in done.stderr


def test_a_dry_run_shows_what_a_run_does_and_does_nothing(stubs):
    stubs.answer(LIST, "", "ACTIVE").answer(OUTCOME, "outcome w0 0")
    shown = pod(stubs, "run", *WHERE, "--accelerator=v6e-64", "--bucket=b", "--dry-run", *TRAIN)
    assert shown.returncode == 0, shown.stderr
    assert not stubs.calls, "not even gcloud is needed"
    lines = [" ".join(shlex.split(line[2:])) for line in shown.stderr.splitlines() if line.startswith("+ gcloud")]
    assert run(stubs).returncode == 0
    asked = [call for call in stubs.calls if "queued-resources list" not in call]
    assert [line.split("igpo.tar.gz")[-1] for line in lines] == [call.split("igpo.tar.gz")[-1] for call in asked]


@pytest.mark.parametrize("command", ["wait", "logs", "status", "stop", "delete", "create", "install", "train"])
def test_every_step_has_a_dry_run(stubs, command):
    done = pod(stubs, command, *WHERE, "--accelerator=v6e-64", "--dry-run", *TRAIN)
    assert done.returncode == 0 and "+ gcloud compute tpus" in done.stderr and not stubs.calls


def test_only_the_project_is_copied(stubs, tmp_path):
    """What git knows or would add goes along; models, data, runs and environments do not."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    shutil.copy(ROOT / ".gitignore", checkout)
    subprocess.run(["git", "init", "-q", checkout], check=True)
    for name in (
        "models/m/params",
        "data/d",
        "runs/r/x",
        "rewrites/w",
        ".venv-cuda/p",
        "train.log",
        "igpo_jax/data/d.py",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    stubs.install("gcloud")
    (stubs.bin / "gcloud").write_text('#!/usr/bin/env bash\n[ "$4" != scp ] || tar -tzf "$5" >"$STUBS/archive"\n')
    done = stubs.run("launch/tpu_pod.sh", "install", *WHERE, "--accelerator=v6e-64", cwd=checkout)
    assert done.returncode == 0, done.stderr
    names = set((stubs.folder / "archive").read_text().splitlines())
    assert {"launch/worker.sh", "launch/gke/jobset.yaml", "igpo_jax/data/d.py", ".gitignore"} <= names
    assert not [name for name in names if name.split("/")[0] not in ("launch", "igpo_jax", ".gitignore")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fly",), "tpu_pod.sh does not know 'fly'; it knows run, create"),
        (("run",), "--name is missing; pass --name=igpo"),
        (("run", "--name=a"), "--zone is missing; pass --zone=us-east5-b"),
        (("run", *WHERE), "--accelerator is missing; pass --accelerator=v6e-64"),
        (("run", *WHERE, "--accelerator=v9-8"), "--accelerator is 'v9-8', expected v5litepod-N, v5p-N or v6e-N"),
        (("run", *WHERE, "--accelerator=v6e-8"), "the training's --config or --workdir is missing; pass both after --"),
        (
            ("train", *WHERE, "--accelerator=v6e-8", "--", "--config=a"),
            "the training's --config or --workdir is missing",
        ),
        (("run", "--name=my igpo", "--zone=z"), "--name is 'my igpo', expected small letters, digits and '-'"),
        (("--dry-run", "run"), "the command comes before the options, as in: bash launch/tpu_pod.sh run --dry-run"),
        (("run", *WHERE, "--slices=0"), "--slices is '0', expected a number of at least 1"),
        (("run", *WHERE, "--restarts=x"), "--restarts is 'x', expected a number of at least 0"),
        (("run", *WHERE, "--poll=-1"), "--poll is '-1', expected a number of seconds"),
        (("run", "--nam=a"), "'--nam=a' is not an option of tpu_pod.sh; write options as --name=value"),
    ],
)
def test_bad_arguments_end_with_one_sentence(stubs, arguments, sentence):
    done = pod(stubs.install("gcloud"), *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
    assert not stubs.calls


def test_a_missing_gcloud_is_said(stubs):
    done = pod(stubs, "status", *WHERE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: gcloud was not found on PATH; install the Google Cloud CLI")


def test_help_is_the_comment_at_its_head(stubs):
    done = pod(stubs, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Trains on a Cloud TPU slice")
    assert "--dry-run" in done.stdout and "set -euo" not in done.stdout
    assert pod(stubs, "run", "--help").stdout == done.stdout
    assert pod(stubs, "").returncode == 2
    assert (ROOT / "launch" / "tpu_pod.sh").exists()
