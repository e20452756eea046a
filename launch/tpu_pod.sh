#!/usr/bin/env bash
# Trains on a Cloud TPU slice, or on several, from your own machine:
#
#   bash launch/tpu_pod.sh run --name=NAME --zone=ZONE --accelerator=v6e-64 --bucket=BUCKET -- \
#       --config=configs/llada_8b/igpo.py:v6e-64 --workdir=runs/NAME
#
# Commands:
#   run      create, wait, install, train; after a preemption all of it again, until the training ends by itself
#   create   ask for the slices (a queued resource); what is already asked for is left as it is
#   wait     wait until they are there
#   install  copy this checkout to all workers and set up the environment
#   train    start the same command on all workers and follow it; started again, it follows what runs
#   logs     show the output of the first worker until its training ends
#   status   the state of the resource, and how the training stands on each worker
#   stop     ask the training to save and leave
#   delete   give the slices back
#
# Options:
#   --name=NAME, --zone=ZONE   the queued resource and where it is; always needed
#   --project=PROJECT          gcloud's own default where it is left out
#   --accelerator=TYPE         as gcloud names it: v6e-64, v5litepod-64, v5p-128 (two cores a chip, so 64 chips)
#   --runtime=VERSION          the machines' image; follows from the accelerator
#   --slices=N                 several slices, as one run (default 1); give the mesh a data axis: --config.mesh.data=N
#   --spot                     cheaper, and taken away at any time
#   --bucket=BUCKET            a storage bucket whose folders models, data, rewrites and runs every worker sees; without
#                              one, a preemption loses the run
#   --flags=BUNDLE             a bundle of python -m igpo_jax.parallel.xla_flags; follows from the accelerator
#   --restarts=N               preemptions after which "run" gives up (default 50)
#   --poll=SECONDS             between two looks at the state (default 30)
#   --delete-after             "run" gives the slices back when the training ended well
#   --dry-run                  prints every command and changes nothing
#
# Exit codes: 0 when the training ended well, its own code when it failed, 75 when it was preempted ("train"), 2 for
# anything else.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cluster.sh
source "$root/launch/cluster.sh"

name="" zone="" project="" accelerator="" runtime="" bucket="" flags="" slices=1 spot=no restarts=50 poll=30 delete_after=no
command=${1:-}
shift || true
[[ $command != -?* || $command = -h || $command = --help ]] || fail "the command comes before the options, as in: bash launch/tpu_pod.sh run $command"
training=()
while [ $# -gt 0 ]; do
    case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --flags=*) flags=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --spot) spot=yes ;;
    --delete-after) delete_after=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) command=help ;;
    --)
        shift
        training=("$@")
        break
        ;;
    *) fail "'$1' is not an option of tpu_pod.sh; write options as --name=value, and what the training gets after --" ;;
    esac
    shift
done

# --- what the options mean

check_options() {
    require_option name "$name" igpo
    check_name "$name"
    require_option zone "$zone" us-east5-b
    [[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices', expected a number of at least 1"
    [[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts', expected a number of at least 0"
    [[ $poll =~ ^[0-9]+$ ]] || fail "--poll is '$poll', expected a number of seconds"
    require_tool gcloud "install the Google Cloud CLI and run: gcloud auth login"
}

check_accelerator() {
    require_option accelerator "$accelerator" v6e-64
    case "$accelerator" in
    v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" "${flags:=v5e}" ;;
    v5p-*) : "${runtime:=v2-alpha-tpuv5}" "${flags:=tpu}" ;;
    v6e-*) : "${runtime:=v2-alpha-tpuv6e}" "${flags:=tpu}" ;;
    *) [[ $runtime && $flags ]] || fail "--accelerator is '$accelerator', expected v5litepod-N, v5p-N or v6e-N; for another one pass --runtime and --flags as well" ;;
    esac
    [ "$slices" = 1 ] || [[ $flags != tpu && $flags != v5e ]] || flags+=_multislice
}

nodes() {
    local slice
    [ "$slices" != 1 ] || printf '%s\n' "$name"
    [ "$slices" = 1 ] || for ((slice = 0; slice < slices; slice++)); do printf '%s-%d\n' "$name" "$slice"; done
}

place() { printf '%s\n' --zone="$zone" ${project:+--project="$project"}; }

# --- the queued resource

# Its state in Google's words; empty where there is none.
resource_state() {
    local where
    mapfile -t where < <(place)
    gcloud compute tpus queued-resources list "${where[@]}" --filter="name~/$name\$" --format="value(state.state)"
}

create() {
    local where size=(--node-id="$name")
    mapfile -t where < <(place)
    [ "$slices" = 1 ] || size=(--node-count="$slices" --node-prefix="$name")
    [ "$spot" = no ] || size+=(--spot)
    step gcloud compute tpus queued-resources create "$name" "${where[@]}" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" "${size[@]}" || fail "the slices were refused; gcloud's reason is above"
}

delete() {
    local where
    mapfile -t where < <(place)
    step gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet || fail "$name could not be deleted, and costs money as long as it is there; gcloud's reason is above"
}

# Leaves a resource that is there or on its way, and replaces one that was taken away.
ensure() {
    local state=""
    if [ "$dry_run" = no ]; then state=$(resource_state) || fail "gcloud could not say whether $name exists; its reason is above"; fi
    case "$state" in
    "") create ;;
    SUSPENDING | SUSPENDED | FAILED)
        say "$name is $state: it is deleted and asked for again"
        delete
        create
        ;;
    *) say "$name is already there ($state)" ;;
    esac
}

# Returns 75 where the resource was taken away before or after it came.
wait_until_active() {
    local state before="" where
    mapfile -t where < <(place)
    step gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value(state.state)" >/dev/null || fail "$name does not exist; create it first"
    [ "$dry_run" = no ] || return 0
    while :; do
        state=$(resource_state) || fail "gcloud could not say how $name stands; its reason is above"
        [ "$state" = "$before" ] || say "$name: ${state:-gone}"
        before=$state
        case "$state" in
        ACTIVE) return 0 ;;
        FAILED) fail "Google could not provide $name; try another zone or a smaller slice" ;;
        "" | SUSPENDING | SUSPENDED) return 75 ;;
        esac
        sleep "$poll"
    done
}

# --- the workers

# on NODE WORKER COMMAND: WORKER is a number, or "all".
on() {
    local where
    mapfile -t where < <(place)
    step gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" --worker="$2" --command="$3"
}

# The same command on every worker of every slice at once; fails where it failed on one.
everywhere() {
    local node pids=() failed=0 pid
    for node in $(nodes); do
        if [ "$dry_run" = yes ]; then on "$node" all "$1"; else
            on "$node" all "$1" &
            pids+=($!)
        fi
    done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
    return "$failed"
}

pack() {
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar --directory="$root" --null --files-from=- --ignore-failed-read -czf "$1"
}

install_everywhere() {
    local archive=igpo.tar.gz node where copied=0
    mapfile -t where < <(place)
    printf '+ pack the checkout into %s\n' "$archive" >&2
    if [ "$dry_run" = no ]; then
        archive=$(mktemp -d)/$archive
        pack "$archive" || fail "$root could not be packed; run this from a git checkout"
    fi
    for node in $(nodes); do
        step gcloud compute tpus tpu-vm scp "$archive" "$node:igpo.tar.gz" "${where[@]}" --worker=all || copied=1
    done
    [ "$dry_run" = yes ] || rm -r "$(dirname "$archive")"
    [ "$copied" = 0 ] || return 1
    everywhere "mkdir -p igpo && tar -xzf igpo.tar.gz -C igpo && bash igpo/launch/worker.sh install tpu${bucket:+ $(quoted "$bucket")}"
}

logs() { on "$(nodes | head -n 1)" 0 "bash igpo/launch/worker.sh follow"; }

# Prints one line for each worker, "outcome HOST CODE"; fails where one could not be asked.
outcomes() {
    local answer
    answer=$(everywhere "bash igpo/launch/worker.sh outcome") || return 1
    grep -o 'outcome [^ ]* [^ ]*' <<<"$answer"
}

taken_away() {
    local state
    state=$(resource_state) || return 1
    [ "$state" != ACTIVE ]
}

# Follows the training to its end; returns its exit code, or 75 where it was asked to leave or the slices are gone.
follow_to_the_end() {
    local found silent=0 worst
    while :; do
        logs || true
        if [ "$dry_run" = yes ]; then
            everywhere "bash igpo/launch/worker.sh outcome"
            return 0
        elif found=$(outcomes); then
            silent=0
            if grep -q ' none$' <<<"$found"; then fail "no training was started on $(awk '/ none$/ { print $2; exit }' <<<"$found"); run: train"; fi
            if ! grep -q ' running$' <<<"$found"; then break; fi
        elif taken_away; then
            say "$name was taken away"
            return 75
        elif [ $((silent += 1)) -ge 5 ]; then
            fail "the workers of $name do not answer, although it is ACTIVE; the training may go on: look with 'logs'"
        fi
        sleep "$poll"
    done
    if grep -q ' 75$' <<<"$found"; then return 75; fi
    worst=$(awk '{ print $3 }' <<<"$found" | sort -n | tail -n 1)
    [ "$worst" = 0 ] || say "error: the training failed on $(awk -v code="$worst" '$3 == code { print $2; exit }' <<<"$found") with exit code $worst; its output is above, or in igpo/train.log there"
    return "$worst"
}

train() {
    everywhere "bash igpo/launch/worker.sh start $(quoted "$flags" "${training[@]}")" || {
        if [ "$dry_run" = no ] && taken_away; then return 75; fi
        fail "the training could not be started on every worker; the reason is above"
    }
    follow_to_the_end
}

once() {
    ensure
    wait_until_active || return $?
    install_everywhere || {
        if [ "$dry_run" = no ] && taken_away; then return 75; fi
        fail "the project could not be installed on every worker; the reason is above"
    }
    train
}

run_to_the_end() {
    local code attempt
    for ((attempt = 0; attempt <= restarts; attempt++)); do
        [ "$attempt" = 0 ] || say "going on after preemption $attempt"
        code=0
        once || code=$?
        [ "$code" = 75 ] || break
    done
    if [ "$code" = 75 ]; then fail "$name was preempted $attempt times, which is more than --restarts=$restarts; run the same command again to go on"; fi
    if [ "$code" = 0 ] && [ "$delete_after" = yes ]; then delete; else
        say "$name is still there and costs money; give it back with: bash launch/tpu_pod.sh delete --name=$name --zone=$zone${project:+ --project=$project}"
    fi
    return "$code"
}

show_status() {
    local where
    mapfile -t where < <(place)
    step gcloud compute tpus queued-resources list "${where[@]}" --filter="name~/$name\$"
    everywhere "bash igpo/launch/worker.sh outcome"
}

trap 'say "stopped here; the slices and the training go on: look with logs, end with stop and delete"; exit 130' INT
case "$command" in
-h | --help | help | "")
    show_help "${BASH_SOURCE[0]}"
    [ -n "$command" ] || exit 2
    ;;
run | create | install | train)
    check_options
    check_accelerator
    [[ $command != run && $command != train ]] || check_training "after --" "-- --config=configs/llada_8b/igpo.py:v6e-64 --workdir=runs/$name" ${training[@]+"${training[@]}"}
    case "$command" in
    run)
        [ -n "$bucket" ] || say "warning: without --bucket the run lies on the workers' own disks, and a preemption loses it"
        run_to_the_end
        ;;
    create) ensure ;;
    install) install_everywhere || fail "the project could not be installed on every worker; the reason is above" ;;
    train) train ;;
    esac
    ;;
wait | logs | status | stop | delete)
    check_options
    case "$command" in
    wait) wait_until_active || fail "$name was taken away, or does not exist; create it again" ;;
    logs) logs ;;
    status) show_status ;;
    stop) everywhere "bash igpo/launch/worker.sh stop" ;;
    delete) delete ;;
    esac
    ;;
*) fail "tpu_pod.sh does not know '$command'; it knows run, create, wait, install, train, logs, status, stop and delete" ;;
esac
