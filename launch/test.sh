#!/usr/bin/env bash
# Sets up .venv with the test tools when needed and runs the tests; arguments go to pytest:
#
#   bash launch/test.sh [tests/models] [-k NAME] [-n 0] [...]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

venv=$(environment_dir "$root")
prepare_environment "$root" "$venv" test
cd "$root"
# One worker a core: compiling, most of the time, is serial. Tests of one file share what they compiled; long files come first (tests/conftest.py).
exec "$venv/bin/python" -m pytest -n "$(nproc)" --dist loadfile --no-loadscope-reorder "$@"
