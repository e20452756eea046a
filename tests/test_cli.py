"""The command line as a user meets it: in a process of its own, without jax."""

import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from igpo_jax import cli

ROOT = pathlib.Path(__file__).parents[1]

CONFIG = """
from __future__ import annotations

import dataclasses
from igpo_jax import settings
from igpo_jax.errors import UserError

@dataclasses.dataclass(frozen=True)
class Hints:
    ratio_low: float = 0.2
    pattern: str = "chunks"
    targets: tuple[str, ...] = ("q_proj",)

@dataclasses.dataclass(frozen=True)
class Rl:
    hints: Hints = Hints()
    steps: int = 3
    keep: bool = True
    limit: int | None = None

@dataclasses.dataclass(frozen=True)
class Run:
    rl: Rl = Rl()

def get_config(variant="igpo"):
    if variant == "refused":
        raise UserError("variant 'refused' is not known; use 'igpo'")
    if variant == "broken":
        return {}["nothing"]
    if variant == "wrong":
        return 3
    return settings.to_config_dict(Run(Rl(steps=7 if variant == "grpo" else 3)))
"""

PROGRAM = '''
"""Does nothing, politely."""
import sys
from absl import flags
from igpo_jax import cli

def main(command):
    assert "jax" not in sys.modules
    if command.flags["fail"].value:
        from igpo_jax.errors import UserError
        raise UserError("data.path is 'x', expected a folder; pass --config.data.path")
    print(command.workdir, sorted(command.overrides.items()), command.config.rl.to_dict())
    return 0

def define(values):
    flags.DEFINE_boolean("fail", False, "Whether to fail.", flag_values=values)

cli.run(main, define=define)
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    (folder / "toy.py").write_text(CONFIG)
    (folder / "command.py").write_text(PROGRAM)

    def call(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "command.py", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


def test_overrides_of_every_type_arrive(program):
    done = program(
        "--config=toy.py:grpo",
        "--workdir=out",
        "--config.rl.hints.ratio_low=0.5",
        "--config.rl.hints.pattern=7",
        "--config.rl.hints.targets=('a', 'b')",
        "--noconfig.rl.keep",
        "--config.rl.limit",
        "4",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out [")
    rl = "{'hints': {'pattern': '7', 'ratio_low': 0.5, 'targets': ('a', 'b')}, 'keep': False, 'limit': 4, 'steps': 7}"
    assert rl in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=toy.py", "--config.rl.hint.ratio_low=0.2"], ["--config.rl.hint.ratio_low", "'rl.hints.ratio_low'"]),
        (["--config=toy.py", "--config.rl.hints.ratio_low=much"], ["'much'", "number (float)", "0.2"]),
        (["--config=toy.py", "--fail"], ["data.path is 'x'"]),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(program, arguments, words):
    done = program("--workdir=out", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_help_shows_the_programs_docstring_and_flags(program):
    done = program("--help")
    assert done.returncode == 0
    for word in ("Does nothing, politely.", "--config", "--workdir", "--fail: Whether to fail."):
        assert word in done.stdout


@pytest.fixture()
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, and returns its one line of error."""
    (tmp_path / "toy.py").write_text(CONFIG)
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "syntax.py").write_text("x = 1\ny = = 2\n")
    (tmp_path / "import.py").write_text("\nimport no_such_module\n")
    (tmp_path / "fixed.py").write_text("def get_config():\n    return 1\n")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.run(lambda command: 0, ["command", *arguments])
        assert left.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        return printed

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=toy.py", "--config.ratio_low=1"], ["did you mean 'rl.hints.ratio_low'"]),
        (["--config=toy.py", "--config.rl.steps=1.5"], ["--config.rl.steps", "'1.5'", "whole number (int)"]),
        (["--config=toy.py", "--config.rl.keep=perhaps"], ["--config.rl.keep", "'perhaps'", "True or False"]),
        (["--config=toy.py", "--config.rl.hints=3"], ["section", "--config.rl.hints.pattern"]),
        (["--config=toy.py", "--config.rl.hints.targets=('a'"], ["not a complete tuple"]),
        (["--config=toy.py", "--confg.rl.steps=1"], ["--confg.rl.steps is not a flag"]),
        (["--config=toy.py", "--wrkdir=x"], ["--wrkdir", "did you mean 'workdir'"]),
        (["--config=toy.py", "train"], ["'train' is not a flag"]),
        (["--config=tyo.py"], ["tyo.py", "does not exist", "did you mean 'toy.py'"]),
        (["--config=nowhere/toy.py"], ["nowhere/toy.py", "no config file in 'nowhere'"]),
        (["--config=empty.py"], ["empty.py has no function get_config"]),
        (["--config=syntax.py"], ["syntax.py failed at line 2", "SyntaxError"]),
        (["--config=import.py"], ["import.py failed at line 2", "no_such_module"]),
        (["--config=fixed.py:fast"], ["fixed.py takes no variant", "fixed.py:fast"]),
        (["--config=fixed.py"], ["returned int", "settings dataclass"]),
        (["--config=toy.py:refused"], ["variant 'refused' is not known; use 'igpo'"]),
        (["--config=toy.py:broken"], ["toy.py failed at line 29", "KeyError"]),
        (["--config=toy.py:wrong"], ["returned int"]),
    ],
)
def test_every_mistake_has_its_sentence(refused, arguments, words):
    message = refused("--workdir=out", *arguments)
    for word in words:
        assert word in message


def test_required_flags_are_asked_for(refused):
    assert "--config is missing; pass --config=" in refused("--workdir=out")
    assert "--workdir is missing; pass --workdir=" in refused("--config=toy.py")


def test_an_override_needs_a_config(capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(lambda command: 0, ["command", "--config.rl.steps=2"], requires=())
    assert left.value.code == 2
    assert "there is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--many=two", "error: --many is 'two', expected a whole number\n"),
        ("--check=maybe", "error: --check is 'maybe', expected true or false\n"),
    ],
)
def test_a_flags_value_of_another_kind(argument, sentence, capsys):
    def define(values):
        flags.DEFINE_integer("many", 0, "How many.", flag_values=values)
        flags.DEFINE_bool("check", False, "Whether.", flag_values=values)

    with pytest.raises(SystemExit) as left:
        cli.run(lambda command: 0, ["command", argument], define=define, requires=())
    assert left.value.code == 2
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_the_commands(returned, code):
    with pytest.raises(SystemExit) as left:
        cli.run(lambda command: returned, ["command"], requires=())
    assert left.value.code == code


def test_ctrl_c_leaves_without_a_traceback(capsys):
    def main(command):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli.run(main, ["command"], requires=())
    assert left.value.code == 130
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "code", "said"), [("print('x' * 99999)", 1, ""), ("raise BrokenPipeError", 1, "Broken")]
)
def test_output_that_nobody_reads_ends_a_command_without_a_word(body, code, said):
    """As with `| head -1`; a pipe to anything else that breaks is still an error."""
    program = f"from igpo_jax import cli\ndef main(command):\n    {body}\ncli.run(main, ['x'], requires=())"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes, text=True)
    if not said:
        process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == code and (said in errors if said else errors == ""), errors
