# shellcheck shell=bash
# What the launch scripts for clusters share: errors of one sentence, and steps that --dry-run shows instead of making.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    printf 'error: this is bash %s, 4.4 or newer is needed; on a Mac: brew install bash\n' "$BASH_VERSION" >&2
    exit 2
fi

dry_run=no

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

say() { printf '%s\n' "$1" >&2; }

# One shell line that stands for its arguments.
quoted() {
    local word line=""
    for word in "$@"; do
        [[ $word =~ ^[-A-Za-z0-9_@%+=:,./]+$ ]] || word=${word@Q}
        line+="$word "
    done
    printf '%s\n' "${line% }"
}

# Shows a command, and runs it unless this is a dry run.
step() {
    printf '+ %s\n' "$(quoted "$@")" >&2
    [ "$dry_run" = yes ] || "$@"
}

require_tool() {
    [ "$dry_run" = yes ] || command -v "$1" >/dev/null || fail "$1 was not found on PATH; $2"
}

# require_option NAME VALUE EXAMPLE
require_option() {
    [ -n "$2" ] || fail "--$1 is missing; pass --$1=$3"
}

# has_argument NAME ARGUMENTS: whether --NAME=VALUE or --NAME VALUE is among them.
has_argument() {
    local name=$1 argument
    shift
    for argument in "$@"; do
        case "$argument" in "--$name" | "--$name="?*) return 0 ;; esac
    done
    return 1
}

# check_training WHERE EXAMPLE ARGUMENTS: what the training cannot start without, said before anything costs money.
check_training() {
    local where=$1 example=$2
    shift 2
    { has_argument config "$@" && has_argument workdir "$@"; } || fail "the training's --config or --workdir is missing; pass both $where, as in: $example"
}

check_name() {
    [[ $1 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name is '$1', expected small letters, digits and '-', a letter first"
}

# The comment at the head of a script is its help.
show_help() { sed -n '2,/^[^#]/{ s/^# \{0,1\}//; t print; b; :print; p }' "$1"; }
