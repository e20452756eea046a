"""Scores text and token ids with a masked diffusion model.

  python -m igpo_jax.score --checkpoint DIR --input pairs.jsonl --output scored.jsonl
  python -m igpo_jax.score --checkpoint DIR --tokens rows.npz --logits --output logits.npz
  python -m igpo_jax.score --checkpoint DIR --tokens pair.npz --output bound.npz

Scores are lower bounds of log p(answer | prompt) in nats, by Monte Carlo as in LLaDA's evaluation.
"""

import argparse
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import Parser, check_place, guarded, model_flags
from igpo_jax.errors import UserError, named_as


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    chosen = _parser().read(arguments)
    _check(chosen)

    from igpo_jax.commands import checkpoint, text_scoring, token_scoring
    from igpo_jax.diffusion.monte_carlo import MonteCarlo

    with named_as({"samples is": "--mc-num is", "group": "--batch"}):
        settings = MonteCarlo(chosen.mc_num, min(chosen.batch, max(chosen.mc_num, 1)))
    opened = checkpoint.open_checkpoint(
        chosen.checkpoint, dtype=chosen.dtype, tensor=chosen.tensor, text=chosen.tokens is None
    )
    if chosen.logits:
        token_scoring.write_logits(chosen, opened)
    elif chosen.tokens is not None:
        token_scoring.write_bound(chosen, opened, settings)
    else:
        text_scoring.score(chosen, opened, settings)


def _parser() -> Parser:
    parser = Parser(prog="python -m igpo_jax.score", description=__doc__)
    model_flags(parser, "float32")
    parser.add_argument("--input", default="-", metavar="FILE", help="JSON lines of prompt, answer (default: stdin)")
    parser.add_argument("--output", default="-", metavar="FILE", help="where results go (default: stdout)")
    parser.add_argument("--raw", action="store_true", help="take prompts as they are, without any template")
    parser.add_argument("--mc-num", type=int, default=128, metavar="N", help="samples of each bound (default 128)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="rows of one forward (default 16)")
    parser.add_argument("--cfg", type=float, default=0.0, metavar="W", help="guidance, 0 for none (default)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the masks (default 0)")
    parser.add_argument("--tokens", metavar="FILE.npz", help="score token ids instead of text")
    parser.add_argument("--logits", action="store_true", help="with --tokens: write the raw logits of input_ids")
    return parser


def _check(chosen: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, before anything is loaded."""
    if chosen.logits and chosen.tokens is None:
        raise UserError("--logits needs --tokens FILE.npz with the array input_ids")
    if chosen.tokens is not None and chosen.output == "-":
        raise UserError("--tokens needs --output FILE.npz for the arrays")
    if chosen.tokens is not None and chosen.input != "-":
        raise UserError("--tokens and --input both say what to score; leave one of them out")
    check_place("--output", chosen.output)
    if chosen.batch < 1:
        raise UserError(f"--batch is {chosen.batch}, expected at least 1 row")
    if not 0 <= chosen.cfg < float("inf"):
        raise UserError(f"--cfg is {chosen.cfg}, expected 0 or more")


if __name__ == "__main__":
    sys.exit(main())
