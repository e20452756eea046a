"""docs/reproducing.md has every row and figure, and commands that this project accepts."""

import pathlib
import re
import shlex

import pytest

from igpo_jax import cli, compare, evaluate, report, settings, train
from igpo_jax.commands.arguments import Parser
from igpo_jax.training.run_settings import RunSettings

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproducing.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
COMMANDS = sorted(set(re.findall(r"`?(python -m igpo_jax\.\w+ [^`\n]*)`?", PAGE)))


def of(name: str) -> list[list[str]]:
    found = [shlex.split(command)[3:] for command in COMMANDS if command.startswith(f"python -m igpo_jax.{name} ")]
    assert found
    return [arguments for arguments in found if "RUN" not in arguments]


def test_every_row_and_figure_is_there_with_a_value_and_ours():
    names = [row[0] for row in ROWS]
    assert {"LLaDA-8B-Instruct", "LLaDA-1.5", "IGPO from Instruct", "Length-aligned SFT"} <= set(names)
    assert {"UniGRPO", "DiffuGRPO"} <= set(names)
    assert {name.split(":")[0] for name in names if ":" in name} == {"1b", "3a", "3b", "4", "5", "6", "7"}
    assert all(row[-1] in ("not run yet", "–", "ours") for row in ROWS)
    assert all(len(row) in (4, 5) and all(row) for row in ROWS)


@pytest.mark.parametrize("argv", of("train"), ids=lambda argv: argv[0].split("/")[-1])
def test_training_commands_are_accepted(argv, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    built = []
    with pytest.raises(SystemExit) as stop:
        cli.run(
            lambda command: built.append(settings.from_config_dict(RunSettings, command.config)),
            ["train", *argv],
            define=train.define,
        )
    assert stop.value.code == 0, capsys.readouterr().err
    assert len(built) == 1


def test_other_commands_are_accepted(monkeypatch):
    """Each parser reads its arguments; what comes after (models, runs) is not there."""
    monkeypatch.chdir(ROOT)

    class Read(Exception):
        pass

    original = Parser.read

    def read(self, *arguments, **changes):
        original(self, *arguments, **changes)
        raise Read

    monkeypatch.setattr(Parser, "read", read)
    for module in (evaluate, report, compare):
        for argv in of(module.__name__.rpartition(".")[2]):
            with pytest.raises(Read):
                module._run(argv)
    for argv in of("prepare"):
        built = []
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda command, built=built: built.append(command), ["prepare", *argv])
        assert (stop.value.code, len(built)) == (0, 1)


def test_evaluations_read_what_training_and_import_write():
    made = {argument.partition("=")[2] for argv in of("train") for argument in argv if argument.startswith("--workdir")}
    made |= {"models/llada-8b-instruct", "models/llada-1.5"}
    asked = {argv[argv.index("--checkpoint") + 1] for argv in of("evaluate")}
    assert asked <= made and "runs/llada_8b_sft" in asked
