#!/usr/bin/env bash
# What runs on a worker of a cluster; the other launch scripts call it.
#
#   bash launch/worker.sh install EXTRA [BUCKET]  # Python, .venv with the extra (tpu or cuda), the bucket's folders
#   bash launch/worker.sh exec BUNDLE ARGUMENTS   # trains with a bundle of flags, in the place of this process
#   bash launch/worker.sh start BUNDLE ARGUMENTS  # the same, but detached, with its output in train.log
#   bash launch/worker.sh follow                  # shows train.log until the training ends
#   bash launch/worker.sh outcome                 # "outcome HOST CODE", or "outcome HOST running" or "none"
#   bash launch/worker.sh stop                    # asks the training to save and leave
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
cd "$root"
venv=$(environment_dir "$root")

# Images of TPU machines have an old Python; uv fetches a newer one.
choose_python() {
    local found
    if [ -z "${IGPO_PYTHON:-}" ] && ! (find_python) >/dev/null 2>&1; then
        python3 -m pip install --quiet --user uv || fail "no Python of 3.11 or newer was found, and pip could not install uv, which would fetch one."
        found=$(python3 -m uv python find 3.12 2>/dev/null) || {
            python3 -m uv python install --quiet 3.12 || fail "uv could not install Python 3.12; set IGPO_PYTHON to one of 3.11 or newer."
            found=$(python3 -m uv python find 3.12)
        }
        export IGPO_PYTHON=$found
    fi
}

# Makes models/, data/, rewrites/ and runs/ folders of the bucket, so that every worker sees them and a preemption does not.
mount_bucket() {
    local bucket=$1 folder
    command -v gcsfuse >/dev/null || install_gcsfuse
    mkdir -p bucket
    mountpoint -q bucket || gcsfuse --implicit-dirs "$bucket" "$root/bucket" || fail "the bucket $bucket could not be mounted; check its name and that the workers' service account may write to it."
    for folder in models data rewrites runs; do
        mkdir -p "bucket/$folder"
        [ -e "$folder" ] || ln -s "bucket/$folder" "$folder"
    done
}

install_gcsfuse() {
    local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" | sudo tee "$list" >/dev/null
    { sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse; } || fail "gcsfuse could not be installed; install it on the workers, or leave --bucket out and use storage that all workers share."
}

# The shell around the training lives a moment longer than the code it has written down.
running() { [ ! -f train.exit ] && [ -f train.pid ] && kill -0 "$(cat train.pid)" 2>/dev/null; }

exec_training() {
    local bundle=$1 flags
    shift
    flags=$("$venv/bin/python" -m igpo_jax.parallel.xla_flags "$bundle") || exit 2
    eval "$flags"
    [ -z "${IGPO_DETACHED:-}" ] || echo $$ >train.python # exec keeps the number
    exec "$venv/bin/python" -m igpo_jax.train "$@"
}

start_training() {
    if running; then
        printf 'training already runs here (process %s)\n' "$(cat train.pid)"
        return
    fi
    rm -f train.exit train.python
    # A session of its own outlives the connection that started it.
    # shellcheck disable=SC2016  # the inner shell expands these
    IGPO_DETACHED=yes setsid nohup bash -c 'bash launch/worker.sh exec "$@"; echo $? >train.exit' worker "$@" >train.log 2>&1 </dev/null &
    echo $! >train.pid
}

follow_training() {
    [ -f train.pid ] || fail "no training was started on this worker."
    tail -n +1 -F --pid="$(cat train.pid)" train.log
}

outcome() {
    local code=none
    if [ -f train.exit ]; then
        code=$(cat train.exit)
    elif running; then
        code=running
    elif [ -f train.pid ]; then
        code=137 # ended without a word: killed, or the machine was restarted
    fi
    printf 'outcome %s %s\n' "$(hostname)" "$code"
}

# The signal goes to the training alone, so that the shell around it still writes down the exit code.
stop_training() {
    { running && [ -f train.python ]; } || fail "no training runs on this worker."
    kill -TERM "$(cat train.python)" || fail "the training could not be signalled."
}

command=${1:-}
shift || true
case "$command" in
install)
    choose_python
    prepare_environment "$root" "$venv" "$1" none
    [ -z "${2:-}" ] || mount_bucket "$2"
    ;;
exec) exec_training "$@" ;;
start) start_training "$@" ;;
follow) follow_training ;;
outcome) outcome ;;
stop) stop_training ;;
*) fail "worker.sh does not know '$command'; it knows install, exec, start, follow, outcome and stop." ;;
esac
