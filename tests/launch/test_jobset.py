"""launch/gke/jobset.sh: the manifest it fills in, and what it asks of kubectl."""

import pytest
import yaml

APPLY = ("--name=igpo", "--image=registry/igpo:1", "--bucket=b", "--accelerator=tpu-v6e-slice", "--topology=8x8")
TRAIN = ("--", "--config=configs/llada_8b/igpo.py:v6e-64,eta0.4", '--workdir=runs/a "b" \\c')


def jobset(stubs, command, *arguments):
    return stubs.run("launch/gke/jobset.sh", command, *arguments)


def manifest(stubs, *arguments):
    done = jobset(stubs, "apply", *APPLY, *arguments, "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def pods(found):
    (slices,) = found["spec"]["replicatedJobs"]
    return slices["template"]["spec"]["template"]["spec"]


def test_the_manifest_is_filled_in(stubs):
    found = manifest(stubs)
    assert found["kind"] == "JobSet" and found["metadata"]["name"] == "igpo"
    (slices,) = found["spec"]["replicatedJobs"]
    job, pod = slices["template"]["spec"], pods(found)
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 16, 16, 0)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "launch/worker.sh", "exec", "tpu"]
    assert container["args"] == list(TRAIN[1:]), "quotes and backslashes arrive as they were"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert "@" not in str(found)


def test_a_lost_pod_starts_all_of_them_again_a_number_of_times(stubs):
    found = manifest(stubs, "--restarts=7")
    assert found["spec"]["failurePolicy"] == {"maxRestarts": 7}
    assert found["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0, "no pod starts again alone"
    assert pods(found)["restartPolicy"] == "Never"
    assert pods(found)["terminationGracePeriodSeconds"] >= 300


def test_slices_hosts_and_flags_follow_from_the_options(stubs):
    found = manifest(stubs, "--slices=3", "--topology=4x4x4", "--accelerator=tpu-v5-lite-podslice", "--chips=8")
    slices = found["spec"]["replicatedJobs"][0]
    assert (slices["replicas"], slices["template"]["spec"]["parallelism"]) == (3, 8)
    assert pods(found)["containers"][0]["command"][-1] == "v5e_multislice"


def test_apply_gives_the_manifest_to_the_cluster(stubs):
    done = jobset(stubs.install("kubectl"), "apply", *APPLY, "--context=far", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert stubs.calls == ["kubectl --context=far apply --filename=-"]
    assert done.stdout == ""


def test_a_refusal_is_said(stubs):
    done = jobset(stubs.install("kubectl").answer("kubectl apply *", "!1"), "apply", *APPLY, *TRAIN)
    assert done.returncode == 2 and "error: the cluster refused the set; kubectl's reason is above" in done.stderr
    done = jobset(stubs.answer("kubectl delete *", "!1"), "delete", "--name=igpo")
    assert done.returncode == 2 and "error: the set igpo could not be deleted" in done.stderr


def test_logs_status_and_delete(stubs):
    stubs.install("kubectl")
    for command in ("logs", "status", "delete"):
        assert jobset(stubs, command, "--name=igpo").returncode == 0
    assert stubs.calls[0].startswith("kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=igpo,")
    assert stubs.calls[1] == "kubectl get jobset igpo" and stubs.calls[3] == "kubectl delete jobset igpo"


def test_a_dry_run_asks_the_cluster_nothing(stubs):
    for command in ("apply", "logs", "status", "delete"):
        done = jobset(stubs, command, *APPLY, "--dry-run", *TRAIN)
        assert done.returncode == 0 and "+ kubectl " in done.stderr
    assert not stubs.calls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fly",), "jobset.sh does not know 'fly'; it knows apply, logs, status and delete"),
        (("apply",), "--name is missing; pass --name=igpo"),
        (("apply", "--name=A_b"), "--name is 'A_b', expected small letters"),
        (("apply", "--name=a"), "--image is missing; pass --image="),
        (("apply", "--name=a", "--image=i"), "--bucket is missing"),
        (("apply", *APPLY), "the training's --config or --workdir is missing; pass both after --, as in: -- --config="),
        (("apply", *APPLY, "--", "--config=a"), "the training's --config or --workdir is missing"),
        (("--dry-run", "apply"), "the command comes before the options, as in: bash launch/gke/jobset.sh apply"),
        (("apply", *APPLY, "--topology=64", *TRAIN), "--topology is '64', expected chips along each axis"),
        (("apply", *APPLY, "--topology=3x3", *TRAIN), "--topology=3x3 has 9 chips, which do not divide over machines"),
        (("apply", *APPLY, "--slices=two", *TRAIN), "--slices is 'two', expected a number of at least 1"),
        (("apply", "--foo"), "'--foo' is not an option of jobset.sh"),
    ],
)
def test_bad_arguments_end_with_one_sentence(stubs, arguments, sentence):
    done = jobset(stubs.install("kubectl"), *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
    assert not stubs.calls


def test_a_missing_kubectl_is_said(stubs):
    done = jobset(stubs, "status", "--name=igpo")
    assert done.returncode == 2 and done.stderr.startswith("error: kubectl was not found on PATH; install it")
