"""Model checkpoints in and out: Hugging Face layout to Orbax and back, bit for bit.

Runs on the CPU and holds one tensor at a time, so the size of the model does not matter. docs/checkpoints.md shows it
on LLaDA-8B-Instruct.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from igpo_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, like every command here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 where ``verify`` found a difference, 2 after an error."""
    # Conversion is disk and memory work; an accelerator that another program holds must not be in its way.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        chosen = _parser().parse_args(arguments)
        return chosen.run(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; nothing was left behind", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    command = _command(commands, "import", _import, "Hugging Face layout to an Orbax model folder")
    command.add_argument("--source", required=True, metavar="DIR_OR_HUB_ID", help="folder, or id on the hub")
    command.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    command.add_argument("--dtype", metavar="DTYPE", help="convert to bfloat16 or float32 (default: keep)")
    command.add_argument("--revision", default="", metavar="COMMIT", help="commit on the hub, 40 digits")

    command = _command(commands, "export", _export, "model folder or training run to Hugging Face layout")
    command.add_argument("--source", required=True, metavar="DIR", help="model folder or run directory")
    command.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    command.add_argument("--dtype", metavar="DTYPE", help="convert to bfloat16 or float32 (default: keep)")
    command.add_argument("--adapters-only", action="store_true", help="a run's adapters alone, in PEFT's layout")

    command = _command(commands, "verify", _verify, "hold a converted model against its source")
    command.add_argument("--source", required=True, metavar="HF_DIR", help="checkpoint in Hugging Face layout")
    command.add_argument("--converted", required=True, metavar="DIR", help="model folder, or an exported checkpoint")

    command = _command(commands, "inspect", _inspect, "what is in a checkpoint of any kind")
    command.add_argument("folder", metavar="DIR", help="model folder, Hugging Face folder or run directory")
    return parser


def _command(
    commands: "argparse._SubParsersAction[_Parser]", name: str, run: Callable[[argparse.Namespace], int], about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=run)
    return command


def _import(chosen: argparse.Namespace) -> int:
    from convert import hub, importer
    from igpo_jax.training import console

    folder, origin = chosen.source, None
    if hub.is_hub_id(chosen.source):
        folder, commit = hub.fetch(chosen.source, chosen.revision)
        origin = {"hub": chosen.source, "revision": commit}
    elif chosen.revision:
        raise UserError(f"--revision is for a hub id, but --source {chosen.source} is not one; leave it out")
    with _Progress("import") as progress:
        manifest = importer.import_checkpoint(folder, chosen.output, chosen.dtype, origin, progress.report)
    console.note(
        f"{manifest['tensors']} tensors, {manifest['parameters']:,} parameters, {manifest['dtype']} in {chosen.output}"
    )
    console.note(importer.tokenizer_note(chosen.output))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from convert import exporter
    from igpo_jax.training import console

    if chosen.adapters_only:
        if chosen.dtype:
            raise UserError("--dtype cannot be given with --adapters-only, which keeps float32; leave one of them out")
        done = exporter.export_adapters(chosen.source, chosen.output)
        console.note(f"{done['tensors']} tensors of adapters on {', '.join(done['targets'])} in {chosen.output}")
        return 0
    with _Progress("export") as progress:
        done = exporter.export_model(chosen.source, chosen.output, chosen.dtype, report=progress.report)
    console.note(f"{done['tensors']} tensors, {done['files']} weight files, {done['dtype']} in {chosen.output}")
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    from convert import verifier
    from igpo_jax.training import console

    with _Progress("verify") as progress:
        findings = verifier.verify(chosen.source, chosen.converted, progress.report)
    rows = [(f.check, f.found, f.expected, "ok" if f.equal else "DIFFERENT") for f in findings]
    console.note(console.table(rows, ("check", "converted", "source", "result")))
    wrong = sum(not finding.equal for finding in findings)
    console.note(f"\n{chosen.converted} {'is equal to' if not wrong else 'DIFFERS from'} {chosen.source}")
    return 1 if wrong else 0


def _inspect(chosen: argparse.Namespace) -> int:
    from convert import contents
    from igpo_jax.training import console

    console.note(console.table(contents.summary(chosen.folder), ("folder", chosen.folder)))
    console.note("")
    console.note(console.table(contents.parameters(chosen.folder), ("parameter", "shape", "dtype", "size")))
    return 0


class _Progress:
    """Bytes done, rate and time left: one line that changes on a terminal, a line every tenth into a pipe."""

    def __init__(self, label: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._label, self._stream, self._clock = label, stream or sys.stderr, clock
        self._start = self._shown = clock()
        self._share, self._live = 0.0, False

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            print(file=self._stream)

    def report(self, done: int, total: int) -> None:
        """Shows ``done`` of ``total`` bytes."""
        now, share = self._clock(), done / total if total else 1.0
        terminal = self._stream.isatty()
        due = now - self._shown >= (0.2 if terminal else 1.0) and (terminal or share - self._share >= 0.1)
        if not due and done < total:
            return
        self._shown, self._share, self._live = now, share, terminal
        text = self._line(done, total, now - self._start)
        print(f"\r{text}\033[K" if terminal else text, end="" if terminal else "\n", file=self._stream, flush=True)

    def _line(self, done: int, total: int, seconds: float) -> str:
        from convert.staging import gigabytes
        from igpo_jax.training.console import format_duration

        rate = done / seconds if seconds > 0 else 0.0
        left = f"{format_duration((total - done) / rate)} left" if rate and done < total else format_duration(seconds)
        share = 100 * done // total if total else 100
        return f"{self._label} {share:>3}%  {gigabytes(done)} of {gigabytes(total)}  {gigabytes(int(rate))}/s  {left}"


if __name__ == "__main__":
    sys.exit(main())
