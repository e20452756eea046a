"""New verdicts for stored samples: the outputs stay, what the judge said of them is replaced everywhere."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from igpo_jax.errors import UserError
from igpo_jax.evaluation import identity, page, reports
from igpo_jax.evaluation.store import PAGE, PROTOCOL, REPORT, SAMPLES, read_json, write_whole
from igpo_jax.rewards.verdict import Verdict


def kinds_of(folder: pathlib.Path) -> dict[str, str]:
    """What the gold answers of each suite of an evaluation are."""
    return {suite: str(asked.get("kind", "math")) for suite, asked in read_json(folder / PROTOCOL)["suites"].items()}


def write(folder: pathlib.Path, rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> str:
    """Replaces samples, page and report, the report last; returns the new table.

    Args:
      folder: of the evaluation, which is complete.
      rows: the lines of samples.jsonl.
      verdicts: one for each.

    Raises:
      UserError: the evaluation has no report yet, so it would have two judges when it goes on.
    """
    if not (folder / REPORT).is_file():
        raise UserError(f"{folder} has no report.json yet; finish the evaluation before its samples are judged again")
    protocol = read_json(folder / PROTOCOL) | {"judge": identity.judge()}
    protocol["versions"] = protocol["versions"] | identity.judge_versions()
    records = [row | _said(verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    report = reports.report(protocol, records)
    # Without a report the folder counts as unfinished, should this be stopped in the middle.
    (folder / REPORT).unlink()
    write_whole(folder / PROTOCOL, json.dumps(protocol, indent=2) + "\n")
    write_whole(folder / SAMPLES, "".join(json.dumps(record) + "\n" for record in records))
    write_whole(folder / PAGE, page.render(report, records))
    write_whole(folder / REPORT, json.dumps(report, indent=2) + "\n")
    return reports.table(report)


def _said(verdict: Verdict) -> dict[str, Any]:
    return {
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "timed_out": verdict.timed_out,
    }
