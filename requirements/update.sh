#!/usr/bin/env bash
# Writes the lock file of one Python line anew from the ranges in pyproject.toml:
#
#   bash requirements/update.sh python3.11
#
# Exact versions only: no addresses, and no hashes, which differ between mirrors that build packages themselves.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

python=${1:?"name the interpreter, for example python3.11"}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
IGPO_PYTHON=$python prepare_environment "$root" "$scratch/venv" test none
version=$("$scratch/venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lock=$root/requirements/lock-cpu-py${version/./}.txt
{
    printf '# Python %s, Linux x86-64, CPU: what igpo-jax[test] resolved to. Made by: bash requirements/update.sh python%s\n' "$version" "$version"
    "$scratch/venv/bin/python" -m pip --disable-pip-version-check freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[^ ]+$'
} >"$scratch/lock"
mv "$scratch/lock" "$lock"
printf 'Wrote %s (%d packages).\n' "${lock#"$root"/}" "$(grep -c == "$lock")"
