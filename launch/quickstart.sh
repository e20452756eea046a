#!/usr/bin/env bash
# Sets up .venv when needed and runs the paper's whole recipe on the embedded task:
#
#   bash launch/quickstart.sh [--config=configs/quickstart.py:grpo] [--workdir=DIR] [--config.FIELD=VALUE ...]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

venv=$(environment_dir "$root")
prepare_environment "$root" "$venv" ""

[ "$PWD" = "$root" ] && prefix="" || prefix="$root/"
config=(--config="${prefix}configs/quickstart.py")
workdir=(--workdir="${prefix}runs/quickstart")
for argument in "$@"; do
    case "$argument" in
    --config | --config=*) config=() ;;
    --workdir | --workdir=*) workdir=() ;;
    esac
done
exec "$venv/bin/python" -m igpo_jax.train "${config[@]}" "${workdir[@]}" "$@"
