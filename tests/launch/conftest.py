"""Stand-ins for the commands of clouds and clusters: they write down what they were asked and answer from a script."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]

#: Answers with the first line of the first file whose name (a shell pattern) fits the arguments, and drops that line
#: unless it is the last. "!N" exits with code N, "\\n" inside an answer is a line break.
STUB = r"""#!/usr/bin/env bash
printf '%s\n' "${0##*/} $*" >>"$STUBS/calls"
cat >>"$STUBS/stdin" </dev/stdin &
wait
for file in "$STUBS"/answers/*; do
    [ -f "$file" ] || continue
    pattern=$(head -n 1 "$file")
    # shellcheck disable=SC2254
    case "${0##*/} $*" in
    $pattern)
        answer=$(sed -n 2p "$file")
        [ "$(wc -l <"$file")" -le 2 ] || sed -i 2d "$file"
        case "$answer" in
        !*) printf 'stub: refused\n' >&2; exit "${answer#!}" ;;
        *) printf '%b' "${answer:+$answer\n}"; exit 0 ;;
        esac
        ;;
    esac
done
"""


class Stubs:
    """A folder of stand-ins; only they and the system's own tools are on PATH."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.bin = folder, folder / "bin"
        (folder / "answers").mkdir(parents=True)
        self.bin.mkdir()

    def install(self, *names: str) -> "Stubs":
        for name in names:
            path = self.bin / name
            path.write_text(STUB)
            path.chmod(0o755)
        return self

    def answer(self, pattern: str, *answers: str) -> "Stubs":
        """Calls that fit ``pattern`` get these answers in turn, the last one for ever; earlier patterns go first."""
        file = self.folder / "answers" / f"{len(list((self.folder / 'answers').iterdir())):02d}"
        file.write_text("\n".join([pattern, *answers]) + "\n")
        return self

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def stdin(self) -> str:
        return (self.folder / "stdin").read_text()

    def run(self, *command: str, cwd: pathlib.Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.bin}:{self.folder / 'system'}",
            "HOME": os.environ.get("HOME", "/"),
            "STUBS": str(self.folder),
            **environment,
        }
        bash = shutil.which("bash")
        return subprocess.run(
            [bash, *command],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )


#: What the scripts may use of the system. Nothing else is on PATH, so that no test can reach a real cloud.
SYSTEM = (
    *(
        "awk",
        "basename",
        "bash",
        "cat",
        "cut",
        "date",
        "dirname",
        "env",
        "flock",
        "git",
        "grep",
        "gzip",
        "head",
        "hostname",
    ),
    *(
        "kill",
        "ln",
        "ls",
        "mkdir",
        "mktemp",
        "mv",
        "nohup",
        "rm",
        "sed",
        "setsid",
        "sha256sum",
        "sleep",
        "sort",
        "tail",
    ),
    *("tar", "tr", "uname", "wc"),
)


@pytest.fixture
def stubs(tmp_path) -> Stubs:
    found = Stubs(tmp_path / "stubs")
    (found.folder / "system").mkdir()
    for name in SYSTEM:
        path = shutil.which(name)
        if path:
            (found.folder / "system" / name).symlink_to(path)
    return found
