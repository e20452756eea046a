#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet (which the cluster must have installed):
#
#   bash launch/gke/jobset.sh apply --name=igpo --image=IMAGE --bucket=BUCKET --accelerator=tpu-v6e-slice --topology=8x8 \
#       -- --config=configs/llada_8b/igpo.py:v6e-64 --workdir=runs/igpo
#
# Commands:
#   apply    fill in launch/gke/jobset.yaml and give it to the cluster
#   logs     follow the first pod
#   status   the set and its pods
#   delete   end the run (the training saves first) and remove the set
#
# Options:
#   --name=NAME              of the set; always needed
#   --image=IMAGE            built from launch/gke/Dockerfile
#   --bucket=BUCKET          a storage bucket whose folders models, data, rewrites and runs every pod sees
#   --accelerator=TYPE       GKE's name: tpu-v6e-slice, tpu-v5-lite-podslice, tpu-v5p-slice
#   --topology=AxB[xC]       chips of one slice, as the node pool has them
#   --slices=N               several slices, as one run (default 1); give the mesh a data axis: --config.mesh.data=N
#   --chips=N                chips of one machine (default 4)
#   --flags=BUNDLE           a bundle of python -m igpo_jax.parallel.xla_flags; follows from the accelerator
#   --service-account=NAME   may write to the bucket (default: default)
#   --restarts=N             starts after a preemption, a loss or a failure, before the set fails (default 20)
#   --context=CONTEXT        kubectl's context, where the current one is not meant
#   --dry-run                prints the manifest and every command and changes nothing
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=launch/cluster.sh
source "$root/launch/cluster.sh"

name="" image="" bucket="" accelerator="" topology="" flags="" context="" slices=1 chips=4 account=default restarts=20
command=${1:-}
shift || true
[[ $command != -?* || $command = -h || $command = --help ]] || fail "the command comes before the options, as in: bash launch/gke/jobset.sh apply $command"
training=()
while [ $# -gt 0 ]; do
    case "$1" in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --flags=*) flags=${1#*=} ;;
    --service-account=*) account=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --context=*) context=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    -h | --help) command=help ;;
    --)
        shift
        training=("$@")
        break
        ;;
    *) fail "'$1' is not an option of jobset.sh; write options as --name=value, and what the training gets after --" ;;
    esac
    shift
done

on_cluster() { step kubectl ${context:+--context="$context"} "$@"; }

check_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "--$1 is '$2', expected a number of at least 1"; }

# Machines of one slice.
hosts() {
    local side product=1
    [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology is '$topology', expected chips along each axis of a slice, as in 8x8"
    for side in ${topology//x/ }; do product=$((product * side)); done
    [ $((product % chips)) = 0 ] || fail "--topology=$topology has $product chips, which do not divide over machines of --chips=$chips"
    printf '%d\n' $((product / chips))
}

check_apply() {
    require_option image "$image" europe-docker.pkg.dev/PROJECT/REPOSITORY/igpo:first
    require_option bucket "$bucket" my-bucket
    require_option accelerator "$accelerator" tpu-v6e-slice
    require_option topology "$topology" 8x8
    check_number slices "$slices"
    check_number chips "$chips"
    check_number restarts "$restarts"
    check_training "after --" "-- --config=configs/llada_8b/igpo.py:v6e-64 --workdir=runs/$name" ${training[@]+"${training[@]}"}
    if [ -z "$flags" ]; then
        flags=tpu
        [[ $accelerator != tpu-v5-lite* ]] || flags=v5e
        [ "$slices" = 1 ] || flags+=_multislice
    fi
}

# One argument as a JSON string, which YAML reads as well.
json_string() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '"%s"' "$text"
}

json_list() {
    local separator="[" argument
    for argument in "$@"; do
        printf '%s%s' "$separator" "$(json_string "$argument")"
        separator=", "
    done
    printf ']\n'
}

manifest() {
    local text key value
    text=$(<"$root/launch/gke/jobset.yaml")
    while IFS='=' read -r key value; do text=${text//@$key@/"$value"}; done <<END
NAME=$name
IMAGE=$image
BUCKET=$bucket
ACCELERATOR=$accelerator
TOPOLOGY=$topology
SERVICE_ACCOUNT=$account
FLAGS=$flags
RESTARTS=$restarts
SLICES=$slices
CHIPS=$chips
HOSTS=$1
ARGUMENTS=$(json_list "${training[@]}")
END
    printf '%s\n' "$text"
}

apply() {
    local count text
    count=$(hosts) || exit 2
    text=$(manifest "$count")
    [ "$dry_run" = no ] || printf '%s\n' "$text"
    on_cluster apply --filename=- <<<"$text" || fail "the cluster refused the set; kubectl's reason is above (is JobSet installed there?)"
}

case "$command" in
-h | --help | help | "")
    show_help "${BASH_SOURCE[0]}"
    [ -n "$command" ] || exit 2
    ;;
apply | logs | status | delete)
    require_option name "$name" igpo
    check_name "$name"
    require_tool kubectl "install it and fetch the cluster's credentials: gcloud container clusters get-credentials"
    case "$command" in
    apply)
        check_apply
        apply
        ;;
    logs) on_cluster logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0,jobset.sigs.k8s.io/job-index=0" --container=train ;;
    status)
        on_cluster get jobset "$name"
        on_cluster get pods --selector="jobset.sigs.k8s.io/jobset-name=$name"
        ;;
    delete) on_cluster delete jobset "$name" || fail "the set $name could not be deleted; kubectl's reason is above" ;;
    esac
    ;;
*) fail "jobset.sh does not know '$command'; it knows apply, logs, status and delete" ;;
esac
