"""The page on generation: its commands are accepted, its arrays are those that are written."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from igpo_jax import generate, score

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = (ROOT / "docs" / "generation.md").read_text()
COMMANDS = {"igpo_jax.generate": generate, "igpo_jax.score": score}


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, module, arguments) of every such command in a bash block."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and words[2] in COMMANDS:
                found.append((page.name, words[2], words[3:]))
    return found


@pytest.mark.parametrize(("page", "module", "arguments"), commands())
def test_every_command_is_accepted(page, module, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = COMMANDS[module]._parser().read(arguments)
    COMMANDS[module]._check(chosen)


def test_there_are_commands_to_look_at():
    assert {module for _, module, _ in commands()} == set(COMMANDS)


def test_every_array_is_on_the_page(arrays, golden_dir):
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| \((?:S|B)", PAGE.partition("| array out |")[2], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    flags = ("--length", 4, "--steps", 2, "--block-length", 4)
    assert set(arrays("generate", golden_dir / "tiny_llada", {"prompt": np.ones((1, 3), int)}, *flags)) == named


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_every_flag_with_a_meaning(module, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[module].main(["--help"])
    assert stop.value.code == 0 and module in capsys.readouterr().out
    assert all(action.help for action in COMMANDS[module]._parser()._actions)
