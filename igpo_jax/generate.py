"""Completes prompts with a masked diffusion model, shown while it happens.

  python -m igpo_jax.generate --checkpoint runs/quickstart --prompt "Mia has 427 dollars. Then ..."
  python -m igpo_jax.generate --checkpoint models/llada-8b --chat
  python -m igpo_jax.generate --checkpoint models/llada-8b --tokens in.npz --output out.npz

A checkpoint is a folder of `python -m convert import`, a Hugging Face folder, or a run directory of igpo_jax.train.
"""

import argparse
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import Parser, check_place, guarded, model_flags
from igpo_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    chosen = _parser().read(arguments)
    _check(chosen)

    from igpo_jax.commands import checkpoint, text_generation, token_generation

    opened = checkpoint.open_checkpoint(
        chosen.checkpoint, dtype=chosen.dtype, tensor=chosen.tensor, text=chosen.tokens is None
    )
    if chosen.tokens is not None:
        token_generation.generate(chosen, opened)
    elif chosen.chat:
        text_generation.chat(chosen, opened)
    else:
        text_generation.generate(chosen, opened)


def _parser() -> Parser:
    from igpo_jax.commands import hint_flags, sampler_flags

    parser = Parser(prog="python -m igpo_jax.generate", description=__doc__)
    model_flags(parser, "auto")
    parser.add_argument("--prompt", metavar="TEXT", help="what to complete")
    parser.add_argument("--raw", action="store_true", help="take prompts as they are, without any template")
    parser.add_argument("--chat", action="store_true", help="answer lines from standard input, as a conversation")
    parser.add_argument("--no-live", action="store_true", help="print the text only; always so into a pipe")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write every step as JSON (default: print)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with a slider over the steps")
    parser.add_argument("--tokens", metavar="FILE.npz", help="complete token ids instead of text")
    parser.add_argument("--output", metavar="FILE.npz", help="where the arrays for --tokens go")
    sampler_flags.add(parser)
    hint_flags.add(parser)
    return parser


def _check(chosen: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, before anything is loaded."""
    ways = [flag for flag in ("prompt", "chat", "tokens") if getattr(chosen, flag) not in (None, False)]
    if len(ways) != 1:
        raise UserError("generate needs exactly one of --prompt TEXT, --chat, or --tokens FILE.npz")
    if (chosen.tokens is None) != (chosen.output is None):
        raise UserError("--tokens and --output go together; name the .npz file to read and the one to write")
    for flag in ("output", "json", "html"):
        check_place(f"--{flag}", getattr(chosen, flag))
    one = {"json": chosen.json, "html": chosen.html, "hint": chosen.hint, "trace": chosen.trace}
    for flag, value in one.items():
        if value and ways != ["prompt"]:
            raise UserError(f"--{flag} is for one --prompt; leave it out with --{ways[0]}")


if __name__ == "__main__":
    sys.exit(main())
