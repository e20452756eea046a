"""What docs/h100.md and docs/tpu.md show of dry runs and flags is what the commands print."""

import re
import shlex
import sys

import pytest

from tests.launch.conftest import ROOT

SHOWN = [
    (page, command, output)
    for page in ("h100.md", "tpu.md")
    for command, output in re.findall(r"^```text\n\$ (.*)\n((?:.*\n)*?)```$", (ROOT / "docs" / page).read_text(), re.M)
]


@pytest.mark.parametrize(("page", "command", "output"), SHOWN, ids=lambda value: value[:40])
def test_the_page_shows_what_is_printed(stubs, page, command, output):
    words = shlex.split(command)
    if words[0] == "python":
        line = shlex.join([sys.executable, *words[1:]])
        done = stubs.run("-c", line, PYTHONPATH=str(ROOT))
    else:
        assert "--dry-run" in words
        done = stubs.run(*words[1:])
    assert done.returncode == 0 and done.stdout + done.stderr == output, page
    assert not stubs.calls


def test_both_pages_show_something():
    assert {page for page, _, _ in SHOWN} == {"h100.md", "tpu.md"} and len(SHOWN) == 4


def scripts(page: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.search(r"launch/(tpu_pod|gke/jobset|slurm_h100)", line)]


@pytest.mark.parametrize("line", [line for page in ("h100.md", "tpu.md") for line in scripts(page)])
def test_every_launch_command_of_the_pages_is_accepted(stubs, line):
    words = shlex.split(line, comments=True)
    position = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    script, arguments = words[position], words[position + 1 :]
    assert (ROOT / script).is_file()
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    done = stubs.run(script, *arguments[:cut], "--dry-run", *arguments[cut:])
    assert done.returncode == 0, done.stderr
    assert "+ " in done.stderr and not stubs.calls
