"""Runs lm-evaluation-harness with the model "igpo_jax" known to it.

  pip install 'igpo-jax[lm-eval]'
  python -m igpo_jax.harness --model igpo_jax --model_args checkpoint=models/llada-8b,length=256 --tasks gsm8k

All flags are the harness's own. --model_args takes checkpoint, length, steps, block_length, temperature, samples,
group, cfg, check_greedy, dtype, tensor and seed; docs/evaluation.md explains them.
"""

import importlib.util
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import guarded
from igpo_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the harness's command line and returns its exit code."""
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: list[str]) -> None:
    if arguments in ([], ["--help"], ["-h"]):
        print(__doc__)
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; run: pip install 'igpo-jax[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate

    import igpo_jax.evaluation.harness  # noqa: F401  (registers the model)

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
