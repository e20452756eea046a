"""The data report: what went in, what was dropped and why, how long rows are, who wrote them, what tests they touch."""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from igpo_jax.data.fingerprints import overlap
from igpo_jax.data.pipeline import Encoded

JSON_NAME, TEXT_NAME, PLOT_NAME = "data_report.json", "data_report.txt", "data_lengths.png"
_BAR = 40


def split_reports(encoded: Mapping[str, Encoded], built: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the report of every split, JSON values throughout.

    Beside what `encode_examples` reports: ``built`` (reading the sources), ``trace_sources`` (rows by the source of
    their solution) and, for training splits, ``test_overlap`` (questions that a test set asks too, by test set).

    Args:
        encoded: rows by split.
        built: the report of `igpo_jax.data.splits.Split`, by split.
    """
    own = {"test split": [row.question for row in encoded["test"].examples]} if "test" in encoded else {}
    reports: dict[str, dict[str, Any]] = {}
    for split, rows in encoded.items():
        sources = collections.Counter(example.trace_source for example in rows.examples)
        reports[split] = {**rows.report, "trace_sources": dict(sources.most_common()), "built": dict(built[split])}
        if split != "test":
            reports[split]["test_overlap"] = overlap((example.question for example in rows.examples), own)
    return reports


def write_reports(folder: pathlib.Path, reports: Mapping[str, Mapping[str, Any]]) -> list[pathlib.Path]:
    """Writes ``data_report.json``, ``data_report.txt`` and ``data_lengths.png``, each whole or not at all.

    Returns:
        The three files.
    """
    from igpo_jax.data.report_plot import plot_lengths

    folder.mkdir(parents=True, exist_ok=True)
    contents = {JSON_NAME: json.dumps(reports, indent=2) + "\n", TEXT_NAME: as_text(reports)}
    for name, content in contents.items():
        partial = folder / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.rename(folder / name)
    partial = folder / f"partial_{PLOT_NAME}"
    plot_lengths(reports, partial)
    partial.rename(folder / PLOT_NAME)
    return [folder / name for name in (*contents, PLOT_NAME)]


def as_text(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the reports as text for people."""
    return "\n".join(_split_text(split, report) for split, report in reports.items())


def summary(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the lines that a run prints: dropped and cut rows, repeated test questions, the paper's count."""
    lines = []
    for split, report in reports.items():
        if report["dropped"]:
            lines.append(f"{split}: {report['kept']} of {report['rows']} rows are used ({_counts(report['dropped'])})")
        if split == "sft" and report["completions_cut"]:
            lines.append(f"sft: {report['completions_cut']} traces are cut at {report['completion_length']} tokens")
        if any(report.get("test_overlap", {}).values()):
            lines.append(
                f"{split}: {_overlap_text(report['test_overlap'])} are test questions as well"
                " (data.on_test_overlap 'drop' leaves those of public test sets out)"
            )
    return [*lines, *_paper_counts(reports)]


def _paper_counts(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    for report in reports.values():
        built = report["built"]
        if "paper_counts" in built:
            found, paper = built["unique_questions"], built["paper_counts"]
            verdict = "as many" if found == paper else f"{abs(found - paper)} {'more' if found > paper else 'fewer'}"
            return [f"MetaMathQA AnsAug: {found} unique questions, the paper counts {paper}: {verdict}"]
    return []


def _split_text(split: str, report: Mapping[str, Any]) -> str:
    built = report["built"]
    dropped = _counts(built.get("dropped", {})) or "none"
    lines = [
        f"{split}: {report['kept']} of {report['rows']} rows of {built.get('data_set', 'several sets')}",
        f"  template {report['template']} ({report['template_hash']}), vocabulary {report['vocab_size']}",
        f"  solutions by source: {_counts(report['trace_sources'])}",
        f"  dropped here: {_counts(report['dropped']) or 'none'}; longer than their room: {report['completions_cut']}",
        f"  dropped while building: {dropped}; read: {_counts(built.get('read', {})) or 'none'}",
    ]
    if "test_overlap" in report:
        lines.append(f"  questions that are test questions as well: {_overlap_text(report['test_overlap'])}")
    if "length_buckets" in report:
        lines += _bucket_lines(report["length_buckets"])
    for part in ("prompt", "completion"):
        lines += _histogram_lines(part, report)
    return "\n".join([*lines, ""])


def _overlap_text(counts: Mapping[str, int]) -> str:
    shared = ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
    return shared or f"none of {', '.join(counts)}"


def _bucket_lines(buckets: Mapping[str, Any]) -> list[str]:
    widths = ", ".join(f"{w['prompt']}+{w['completion']} ({w['rows']} rows)" for w in buckets["widths"])
    filler, without = buckets["filler_share"], buckets["filler_share_without"]
    return [
        f"  arrays (prompt+completion tokens): {widths}",
        f"  filler: {filler:.0%} of the positions, {without:.0%} without buckets",
    ]


def _histogram_lines(part: str, report: Mapping[str, Any]) -> list[str]:
    tokens, histogram = report[f"{part}_tokens"], report[f"{part}_histogram"]
    numbers = ", ".join(f"{name} {tokens[name]:.0f}" for name in ("mean", "p50", "p90", "p99", "max"))
    lines = [f"  {part} tokens: {numbers}; room for {report[f'{part}_length']}"]
    most, width = max(histogram["counts"]), histogram["bin"]
    for number, count in enumerate(histogram["counts"]):
        bar = "#" * -(-count * _BAR // most)
        lines.append(f"    {number * width:5d}-{(number + 1) * width - 1:<5d} {count:7d} {bar}".rstrip())
    return lines


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())
