"""What every command shares: ``--config``, ``--workdir``, typed overrides, and errors of one sentence.

A command is ``cli.run(main)``. Nothing here imports jax, so ``main`` may still choose virtual devices or start worker
processes first. Overrides have the syntax of ``ml_collections.config_flags``: ``--config.rl.hints.ratio_low=0.2``;
``--config.checkpoints.keep_best`` and ``--noconfig.checkpoints.keep_best`` for booleans;
``--config.rl.lora.targets="('q_proj', 'v_proj')"`` for tuples.
"""

import ast
import dataclasses
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from igpo_jax import settings
from igpo_jax.errors import UserError, nearest

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(?P<value>=.*)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line said."""

    config: ml_collections.ConfigDict  # with the overrides applied; empty without --config
    workdir: pathlib.Path  # the current folder without --workdir
    config_file: str  # what --config was given, as in "configs/quickstart.py:grpo"
    overrides: dict[str, Any]  # dotted path to value, in the order given
    flags: flags.FlagValues  # the command's own flags, as in command.flags.checkpoint


def run(
    main: Callable[[Command], int | None],
    argv: Sequence[str] | None = None,
    *,
    define: Callable[[flags.FlagValues], None] | None = None,
    requires: Sequence[str] = ("config", "workdir"),
    common: Sequence[str] = ("config", "workdir"),
) -> None:
    """Parses the command line, calls ``main`` and leaves the process with its exit code.

    The code is 0 on success, what ``main`` returns, 1 where nobody reads the output any more, 2 after a ``UserError``
    (printed as ``error: ...``), and 130 after Ctrl-C.

    Args:
      main: the command.
      argv: program name and arguments; ``sys.argv`` by default.
      define: declares the command's own flags, as in
        ``flags.DEFINE_string("checkpoint", "", "What it is.", flag_values=values)``.
      requires: flags that must be given.
      common: which of ``--config`` and ``--workdir`` the command has.

    Raises:
      SystemExit: always.
    """
    argv = list(sys.argv if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        values = _flag_values(define, common)
        if any(arg in ("--help", "-h", "-help", "--helpfull") for arg in argv[1:]):
            print(_usage(main, values))
            sys.exit(0)
        code = main(parse(argv, values, requires)) or 0
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was finished is kept", file=sys.stderr)
        sys.exit(130)


def _nobody_reads() -> bool:
    """Whether the reader of standard output has gone, as `head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def parse(argv: Sequence[str], values: flags.FlagValues, requires: Sequence[str] = ()) -> Command:
    """Returns what ``argv`` (program name first) says.

    Raises:
      UserError: for an unknown flag, an override of an unknown field or with a value of the wrong type, a config file
        that cannot be read, or a required flag that is absent.
    """
    known, overrides = _split(argv)
    try:
        rest = values(known)
    except flags.Error as error:
        raise UserError(_flag_error(str(error), values)) from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not a flag; write flags as --name=value, as in --workdir=runs/first")
    for name in requires:
        if not values[name].value:
            raise UserError(f"--{name} is missing; pass --{name}={_EXAMPLES.get(name, '...')}")
    if overrides and "config" not in values:
        raise UserError(f"{overrides[0]} changes a config, but this command has none; leave it out")
    file: str = (values["config"].value or "") if "config" in values else ""
    if overrides and not file:
        raise UserError(f"{overrides[0]} changes a config, but there is none; pass --config={_EXAMPLES['config']}")
    config = load_config(file) if file else ml_collections.ConfigDict().lock()
    applied = _override(config, [argv[0], *overrides])
    workdir = (values["workdir"].value or "") if "workdir" in values else ""
    return Command(config, pathlib.Path(workdir), file, applied, values)


_EXAMPLES = {"config": "configs/quickstart.py:igpo", "workdir": "runs/first", "topology": "v6e:8x8"}


_COMMON = {"config": "Config file, with its variant after a colon.", "workdir": "Folder that the run writes to."}


def _flag_values(define: Callable[[flags.FlagValues], None] | None, common: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    for name in common:
        flags.DEFINE_string(name, "", _COMMON[name], flag_values=values)
    if define:
        define(values)
    return values


def _usage(main: Callable[[Command], int | None], values: flags.FlagValues) -> str:
    module = sys.modules.get(main.__module__)
    about = (inspect.getdoc(module) or "").strip() if module else ""
    lines = [f"  --{name}: {values[name].help} (default: {values[name].value!r})" for name in values]
    if "config" in values:
        lines.append("  --config.FIELD=VALUE: changes one field of the config; docs/configuration.md lists them.")
    return "\n".join([about, "", "Flags:", *lines])


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the overrides, each with its value, from the other arguments."""
    known, overrides = [argv[0]], []
    arguments = list(argv[1:])
    while arguments:
        argument = arguments.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            known.append(argument)
            continue
        overrides.append(argument)
        # "--config.a 3" is one override in two arguments; a lone "--config.a" is a boolean.
        if not match["value"] and not match["no"] and arguments and not re.match(r"--?[a-zA-Z]", arguments[0]):
            overrides[-1] += f"={arguments.pop(0)}"
    return known, overrides


def load_config(location: str) -> ml_collections.ConfigDict:
    """Returns what ``get_config`` of a config file returns, locked.

    Args:
      location: path of a Python file, with the argument of its ``get_config`` after a colon, as in
        ``configs/quickstart.py:grpo``.

    Raises:
      UserError: where the file is missing, fails, lacks ``get_config``, or does not know the variant.
    """
    file, colon, variant = location.partition(":")
    module = _load_module(pathlib.Path(file))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {file} has no function get_config; add one that returns the settings of the run")
    given = [variant] if colon else []
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wants = "no variant" if given else f"a variant, as in --config={file}:NAME"
        raise UserError(f"config file {file} takes {wants}, found --config={location}") from None
    try:
        config = get_config(*given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(file, error)) from error
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return settings.to_config_dict(config)
    if not isinstance(config, ml_collections.ConfigDict):
        found = type(config).__name__
        raise UserError(f"get_config of {file} returned {found}, expected a ConfigDict or a settings dataclass")
    return config.lock()


def _load_module(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        found = sorted(str(other) for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = nearest(str(path), found) if found else f"; there is no config file in '{path.parent}'"
        raise UserError(f"--config names the file {path}, which does not exist{hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config names the file {path}, expected a Python file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses that a config file declares look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(str(path), error)) from error
    return module


def _failure(file: str, error: Exception) -> str:
    """One sentence for an exception inside a config file, with the last line of that file it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).name == pathlib.Path(file).name]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f" at line {lines[-1]}" if lines else ""
    return f"config file {file} failed{where} with {type(error).__name__}: {error}; correct it there"


def _override(config: ml_collections.ConfigDict, argv: Sequence[str]) -> dict[str, Any]:
    """Applies overrides in place and returns them by path."""
    for argument in argv[1:]:
        _check_override(config, argument)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_override_error(config, str(error))) from error
    flag: Any = values["config"]
    return dict(flag.override_values)


def _check_override(config: ml_collections.ConfigDict, argument: str) -> None:
    """Raises UserError where an override names no field, or a whole section."""
    match = _OVERRIDE.fullmatch(argument)
    path = match["path"] if match else ""
    known = settings.field_paths(config)
    if path in known:
        _check_tuple(path, _value_at(config, path), (match["value"] or "=")[1:] if match else "")
        return
    inside = [name for name in known if name.startswith(f"{path}.")]
    if inside:
        raise UserError(f"--config.{path} is a section, not a field; set a field of it, as in --config.{inside[0]}=...")
    raise UserError(f"--config.{path} is not a field of the config{settings.nearest_field(path, known)}")


def _check_tuple(path: str, default: Any, text: str) -> None:
    """Raises UserError for a tuple cut short by the shell, which would pass as a tuple of one odd text."""
    if isinstance(default, tuple) and text[:1] in ("(", "["):
        try:
            ast.literal_eval(text)
        except (SyntaxError, ValueError):
            raise UserError(
                f"--config.{path} is {text}, which is not a complete tuple; put it in double quotes and each text in "
                f"it in single ones, as in --config.{path}=\"('a', 'b')\""
            ) from None


def _override_error(config: ml_collections.ConfigDict, message: str) -> str:
    """The sentence for a value that does not fit its field, made from absl's message where it has the usual form."""
    match = re.match(r"flag --(?:no)?config\.(?P<path>[\w.]+)=(?P<value>.*?):", message, re.DOTALL)
    if not match:
        return f"--config: {message.splitlines()[0]}"
    path, value = match["path"], match["value"]
    default = _value_at(config, path)
    return (
        f"--config.{path} is '{value}', expected {settings.type_name(type(default))}; the config has {default!r} there"
    )


def _value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


def _flag_error(message: str, values: flags.FlagValues) -> str:
    match = re.match(r"Unknown command line flag '(?P<name>[^']+)'", message)
    if match:
        return f"--{match['name']} is not a flag of this command{nearest(match['name'], list(values))}"
    if match := re.match(r"flag --(?P<name>[\w-]+)=(?P<value>.*?): ", message):
        kinds = {"bool": "true or false", "int": "a whole number"}
        expected = kinds.get(values[match["name"]].flag_type(), "another value")
        return f"--{match['name']} is '{match['value']}', expected {expected}"
    return message.splitlines()[0]
