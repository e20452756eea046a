"""Makes one HTML page of one or several runs: curves, stages, time, and a browser of saved rollouts.

  python -m igpo_jax.report runs/quickstart
  python -m igpo_jax.report runs/igpo runs/igpo_seed_1 runs/grpo --output compare.html

The page is one file that loads nothing. Runs that differ in their seed alone are drawn as one curve with a band. One
run's page is RUN/report.html, that of several runs report.html in the current folder, where --output names no other.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import Parser, check_place, guarded, note
from igpo_jax.errors import UserError
from igpo_jax.pages.text import printable

#: Completions in a page unless --rollouts says otherwise; with it a page opens in well under two seconds.
ROLLOUTS = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    chosen = _parser().read(arguments)
    _check(chosen)

    from igpo_jax.reporting import page, runs

    opened = runs.open_runs(chosen.runs)
    output = pathlib.Path(chosen.output or (opened[0].path if len(opened) == 1 else pathlib.Path()) / "report.html")
    text, remarks = page.render(opened, chosen.rollouts)
    for remark in remarks:
        note(f"warning: {printable(remark)}")
    _write(output, text)
    size = output.stat().st_size
    print(f"{output}, {f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.0f} kB'}")


def _write(output: pathlib.Path, text: str) -> None:
    """Writes the page in one atomic move; raises UserError where it cannot be written."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}); name another place with --output=FILE"
        ) from error


def _parser() -> Parser:
    parser = Parser(prog="python -m igpo_jax.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, as igpo_jax.train wrote it")
    parser.add_argument("--output", metavar="FILE", help="the page (default: RUN/report.html, or report.html here)")
    parser.add_argument(
        "--rollouts",
        type=int,
        default=ROLLOUTS,
        metavar="N",
        help=f"most completions in the page, 0 for none (default {ROLLOUTS})",
    )
    return parser


def _check(chosen: argparse.Namespace) -> None:
    """Raises UserError for a page that could not be written, before anything is read."""
    check_place("--output", chosen.output)
    if chosen.rollouts < 0:
        raise UserError(f"--rollouts is {chosen.rollouts}, expected 0 (none) or more")


if __name__ == "__main__":
    sys.exit(main())
