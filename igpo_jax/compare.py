"""Compares two evaluations question by question.

  python -m igpo_jax.compare out/before out/after
  python -m igpo_jax.compare out/before/report.json out/after/report.json --json

Each is an output folder of igpo_jax.evaluate, or its report.json with samples.jsonl beside it. Questions are matched by
their ids. Evaluations of other questions, or under another protocol, are not compared; the first difference is named.
"""

import json
import sys
from collections.abc import Sequence

from igpo_jax.commands.arguments import Parser, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m igpo_jax.compare", description=__doc__)
    parser.add_argument("first", metavar="REPORT_A", help="the evaluation to compare with")
    parser.add_argument("second", metavar="REPORT_B", help="the evaluation to compare")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = parser.read(arguments)

    from igpo_jax.evaluation import comparison

    first, second = comparison.read(chosen.first), comparison.read(chosen.second)
    found = comparison.compare(first, second)
    print(json.dumps(found, indent=2) if chosen.json else comparison.table(found))


if __name__ == "__main__":
    sys.exit(main())
