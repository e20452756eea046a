# shellcheck shell=bash
# Makes the project's virtual environment. Sourced by quickstart.sh, test.sh and .ci/run.
#
#   prepare_environment ROOT VENV EXTRA [LOCK]
#
# ROOT is the checkout, VENV the environment's folder, EXTRA an extra of pyproject.toml or "", LOCK the file with exact
# versions: "auto" (default) takes requirements/lock-cpu-pyXY.txt of the interpreter found, "none" only pyproject's ranges.
# VENV/igpo-setup says how far it got: "unfinished", or a fingerprint of what was installed, written last. An unfinished
# environment is made anew, because pip leaves half-copied packages behind when it is killed.
#
# Environment variables: IGPO_PYTHON names the interpreter to use, IGPO_VENV another folder for the environment.

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# Prints the folder of the checkout's own environment, absolute.
environment_dir() {
    local venv=${IGPO_VENV:-$1/.venv}
    [[ $venv = /* ]] || venv=$PWD/$venv
    printf '%s\n' "$venv"
}

# Locked Python lines first, newest first; then whatever else the machine has.
find_python() {
    local candidates=(python3.12 python3.11 python3 python3.13 python3.14 python) candidate version old="" bare=""
    [ -z "${IGPO_PYTHON:-}" ] || candidates=("$IGPO_PYTHON")
    for candidate in "${candidates[@]}"; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            old=${old:-$version}
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            bare=${bare:-$version}
        else
            printf '%s %s\n' "$version" "$candidate"
            return
        fi
    done
    if [ -n "$bare" ]; then
        fail "Python $bare has no venv module; install it (Debian, Ubuntu: apt install python$bare-venv) or set IGPO_PYTHON to another Python."
    elif [ -n "$old" ]; then
        fail "Python $old is too old, 3.11 or newer is needed; install one or set IGPO_PYTHON to its path."
    fi
    fail "no Python that runs was found (tried: ${candidates[*]}); install Python 3.11 or newer or set IGPO_PYTHON to its path."
}

# Drops from pip's words what names a package index, by address or by folder.
without_addresses() {
    sed -E -e '/^(Looking in|WARNING: Location)/d' -e 's#[A-Za-z+]+://[^[:space:]]*#ADDRESS#g' \
        -e "s/host='[^']*'/host=HOST/g" -e 's#^(Processing|Obtaining) .*/#\1 #'
}

# Runs pip in the environment $1.
run_pip() {
    local venv=$1 log=$1/pip.log
    shift
    if PIP_USER=0 "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>&1 | without_addresses >"$log"; then
        return
    fi
    if grep -qE 'No space left' "$log"; then
        fail "the disk is full: the environment needs about 2 GB under $venv, and several GB more with the cuda extra."
    elif grep -qE 'NewConnectionError|NameResolutionError|Failed to establish|ConnectTimeout|ReadTimeout|ProxyError|Connection(Reset)?Error' "$log"; then
        fail "the Python package index could not be reached (no network, or a proxy that pip has not been told about); try again once 'pip download pip' works. Details: $log"
    fi
    tail -n 5 "$log" >&2
    fail "pip could not install the dependencies (its last lines are above, the rest in $log)."
}

# What pip downloads for an extra, and for how long where that is known.
download_of() {
    case "$1" in
    cuda) printf 'several GB' ;;
    *) printf 'one to five minutes, about 0.5 GB' ;;
    esac
}

install_project() {
    local root=$1 venv=$2 extra=$3 python=$4 lock=$5 constraint=()
    [ "$lock" = none ] || constraint=(--constraint "$lock")
    "$python" -m venv "$venv" >/dev/null || fail "$python could not make a virtual environment in $venv."
    # pip and setuptools are locked too, so that every machine builds the project with the same tools.
    run_pip "$venv" install --upgrade "${constraint[@]}" pip "setuptools>=77"
    run_pip "$venv" install --upgrade --upgrade-strategy only-if-needed "${constraint[@]}" --no-build-isolation \
        --editable "$root${extra:+[$extra]}"
}

prepare_locked() {
    local root=$1 venv=$2 extra=$3 lock=$4 version python state wanted started=$SECONDS
    python=$(find_python) || exit 1
    read -r version python <<<"$python"
    if [ "$lock" = auto ]; then
        lock=$root/requirements/lock-cpu-py${version/./}.txt
        [ -f "$lock" ] || lock=none
    fi
    state=$venv/igpo-setup
    wanted="$version $(cat "$root/pyproject.toml" "${lock/#none//dev/null}" | sha256sum | cut -d' ' -f1) $root"

    if [ -e "$venv" ] && [ ! -f "$state" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv was not made by this script; move it away, or set IGPO_VENV to another folder."
    fi
    if [ -f "$state" ]; then
        grep -qxF -e "$wanted [$extra]" -e "$wanted [test]" "$state" && "$venv/bin/python" -c '' 2>/dev/null && return
        # A changed lock is brought up to date in place; another Python, a moved checkout or a half-made one is made anew.
        if ! grep -qE "^$version [0-9a-f]{64} " "$state" || ! grep -qF " $root [" "$state" || ! "$venv/bin/python" -c '' 2>/dev/null; then
            rm -rf "$venv"
        elif grep -qF '[test]' "$state"; then
            extra="test"
        fi
    fi
    printf 'Setting up %s with Python %s (once; %s to download) ...\n' "$venv" "$version" "$(download_of "$extra")" >&2
    [ "$lock" != none ] || printf 'No lock file is used for Python %s: the newest versions that pyproject.toml allows are taken.\n' "$version" >&2
    mkdir -p "$venv" || fail "$venv cannot be created; set IGPO_VENV to a folder that can be written."
    printf 'unfinished\n' >"$state" || fail "$venv cannot be written; set IGPO_VENV to another folder."
    install_project "$root" "$venv" "$extra" "$python" "$lock"
    printf '%s [%s]\n' "$wanted" "$extra" >"$state.new"
    mv "$state.new" "$state"
    printf 'Set up in %d s.\n' $((SECONDS - started)) >&2
}

# Two commands started together wait for each other; the lock is given back before the command itself runs.
prepare_environment() {
    local root=$1 venv=$2 extra=$3 lock=${4:-auto}
    mkdir -p "$(dirname "$venv")"
    (
        ! command -v flock >/dev/null || flock 9
        prepare_locked "$root" "$venv" "$extra" "$lock"
    ) 9>"$venv.lock"
}
