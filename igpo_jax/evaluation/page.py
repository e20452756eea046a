"""The samples of an evaluation as one HTML file: scores, filters, and every sample with the order of its reveal."""

import json
from collections.abc import Sequence
from typing import Any

from igpo_jax.evaluation.page_parts import SCRIPT, STYLE
from igpo_jax.evaluation.reports import HEADER, protocol_text, rows
from igpo_jax.pages.document import document, escape
from igpo_jax.pages.text import printable


def render(report: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """The page; it loads nothing and runs no script but its own, whatever the samples hold.

    Args:
      report: from ``reports.report``.
      records: the samples; shown by suite and question, in the order of the suite.
    """
    order = {suite: place for place, suite in enumerate(report["scores"])}
    ordered = sorted(records, key=lambda record: (order[record["suite"]], _natural(record["id"]), record["sample"]))
    choices = "".join(f'<option value="{escape(suite)}">{escape(suite)}</option>' for suite in order)
    checkpoint = report["checkpoint"]
    about = f"{checkpoint['path']} (weights {checkpoint['weights']}), protocol {protocol_text(report)}"
    body = f"""<h1>Evaluation</h1>
<p>{escape(about)}</p>
<div class="scroll">{_table(report)}</div>
<details><summary>The whole protocol</summary><pre>{escape(_protocol_text(report))}</pre></details>
<div class="controls" id="controls" hidden>
<label>suite <select id="suite"><option value="">all</option>{choices}</select></label>
<label><input type="checkbox" id="wrong"> wrong only</label>
<label><input type="checkbox" id="truncated"> truncated</label>
<label><input type="checkbox" id="no_box"> no box</label>
<input type="search" id="search" placeholder="words in question or text" aria-label="words in question or text">
<output id="shown"></output>
</div>
<div id="list"></div>
<button type="button" id="more" hidden>more</button>
<p><small>The darker a token, the later it was revealed; the slider shows the text after so many denoising steps, grey
where there were still masks.</small></p>"""
    return document("Evaluation", body, STYLE, SCRIPT, [_sample(record) for record in ordered])


def _sample(record: dict[str, Any]) -> dict[str, Any]:
    """What the script shows of one sample, control characters written out."""
    return {
        "suite": printable(record["suite"]),
        "id": printable(record["id"]),
        "sample": record["sample"],
        "question": printable(record["question"]),
        "gold": printable(record["gold"]),
        "answer": None if record["answer"] is None else printable(record["answer"]),
        "reason": printable(record["reason"]),
        "length": f"{record['length']} tokens" + (", truncated" if record["truncated"] else ""),
        "wrong": not record["correct"],
        "truncated": record["truncated"],
        "no_box": not record["has_box"],
        "pieces": [printable(piece) for piece in record["pieces"]],
        "steps": record["reveal_step"],
    }


def _table(report: dict[str, Any]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in HEADER) + "</tr>"]
    for cells in rows(report):
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _natural(name: str) -> tuple[int, str]:
    """Sorts row-2 before row-10."""
    return len(name), name


def _protocol_text(report: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in report.items() if name != "scores"}, indent=2)
