"""Arguments with errors of one sentence, and exit codes, as every command here has them."""

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from igpo_jax.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only, and raises UserError where argparse would end the process."""

    def __init__(self, **settings: Any):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message."""
        hint = ""
        if "expected" in message and "argument" in message:
            hint = "; a value that begins with '-' is written as in --prompt='-3 + 5'"
        raise UserError(f"{message}{hint}; `{self.prog} --help` lists the flags")

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parses the command line (sys.argv where None); an unknown flag is answered with the nearest known one."""
        chosen, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                raise UserError(f"'{name}' is not a flag; `{self.prog} --help` lists the flags")
            known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UserError(f"{name} is not a flag of this command{nearest(name, known)}")
        return chosen


def model_flags(parser: Parser, dtype: str) -> None:
    """Declares the flags that say which model computes, and how."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default=dtype,
        help=f"compute dtype; auto: as the weights are stored (default {dtype})",
    )
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="devices that share the model (default 1)")


def guarded(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code: 0, 2 after bad input (one sentence on stderr), 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    return 0


def check_place(flag: str, place: str | None) -> None:
    """Raises UserError where a file that ``flag`` names could not be written; "-" and None are fine."""
    if place is None or place == "-":
        return
    path = pathlib.Path(place)
    if not path.parent.is_dir():
        raise UserError(f"{flag} {place} lies in a folder that does not exist; make {path.parent} first")
    if path.is_dir():
        raise UserError(f"{flag} {place} is a folder, expected the name of a file; add one")


def note(text: str) -> None:
    """Prints a remark beside the output proper, on stderr."""
    print(text, file=sys.stderr, flush=True)
