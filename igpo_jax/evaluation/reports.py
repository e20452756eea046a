"""The report of an evaluation: scores with the whole protocol beside them, as JSON and as a table."""

import datetime
from collections.abc import Sequence
from typing import Any

from igpo_jax.evaluation import scoring
from igpo_jax.training import console

FORMAT = 1

HEADER = ("suite", "metric", "score", "95% interval", "questions", "truncated", "no box", "no answer", "tokens")


def protocol(
    name: str,
    changes: dict[str, Any],
    suites: dict[str, dict[str, Any]],
    checkpoint: dict[str, Any],
    judge: dict[str, Any],
    *,
    seed: int,
    batch: int,
    dtype: str,
    machine: dict[str, Any],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Everything that a score depends on, as protocol.json and report.json hold it.

    Args:
      name: of the protocol.
      changes: what was asked otherwise than it says, by flag.
      suites: every suite's own protocol (``Task.to_json``).
      checkpoint: which weights.
      judge: which judge.
      seed: of the draws.
      batch: rows of a full batch; results do not depend on it but for rounding.
      dtype: compute dtype.
      machine: the devices.
      versions: of the libraries.
    """
    return {
        "format": FORMAT,
        "protocol": name,
        **({"changed": changes} if changes else {}),
        "checkpoint": checkpoint,
        "suites": suites,
        "judge": judge,
        "seed": seed,
        "batch": batch,
        "dtype": dtype,
        "machine": machine,
        "versions": versions,
    }


def report(protocol: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of a complete evaluation.

    Args:
      protocol: from ``protocol``.
      records: every sample of every suite.
    """
    scores = {
        suite: {"metric": settings["metric"], "limited": settings["limited"]}
        | scoring.score([record for record in records if record["suite"] == suite], protocol["seed"])
        for suite, settings in protocol["suites"].items()
    }
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"scores": scores, **protocol, "finished_at": finished}


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the score table under HEADER, a row a suite."""
    sizes = {suite: settings["questions_of_suite"] for suite, settings in report["suites"].items()}
    return [_row(suite, score, sizes[suite]) for suite, score in report["scores"].items()]


def _row(suite: str, score: dict[str, Any], of_all: int) -> tuple[str, ...]:
    low, high = score["interval"]
    return (
        suite,
        score["metric"],
        percent(score["score"]),
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{score['questions']} of {of_all}" if score["limited"] else str(score["questions"]),
        *(percent(score[name]) for name in ("truncated", "no_box", "no_answer")),
        f"{score['mean_length']:.0f}",
    )


def table(report: dict[str, Any]) -> str:
    """The scores as aligned text; a limited suite says so, and so does a protocol that was changed."""
    lines = [console.table(rows(report), HEADER)]
    limited = [suite for suite, score in report["scores"].items() if score["limited"]]
    if limited:
        lines.append(f"limited: only the first questions of {', '.join(limited)}; no score of the whole suite")
    if "changed" in report:
        lines.append(f"protocol {protocol_text(report)}")
    return "\n".join(lines)


def protocol_text(report: dict[str, Any]) -> str:
    """The protocol's name, and what was asked otherwise."""
    changed = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in report.get("changed", {}).items())
    return f"{report['protocol']}, changed: {changed}" if changed else str(report["protocol"])


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.1f}%"
