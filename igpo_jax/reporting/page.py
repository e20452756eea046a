"""The report: curves, tables and rollouts of one or several runs in one HTML file."""

import importlib.resources
from collections.abc import Sequence
from typing import Any

from igpo_jax.pages.document import document, escape
from igpo_jax.reporting import figures, groups, samples, tables
from igpo_jax.reporting.runs import RunFolder

_SCRIPTS = ("charts.js", "rollouts.js", "page.js")


def render(runs: Sequence[RunFolder], most_rollouts: int) -> tuple[str, list[str]]:
    """The page and, in one sentence each, what it could not show.

    Args:
      runs: opened folders, one or more.
      most_rollouts: bound on the completions inside the page.

    Returns:
      The text of the HTML file, and the remarks that stand in it too.
    """
    grouped = groups.group_runs(runs)
    rollouts, unreadable = samples.load(runs, most_rollouts)
    remarks = [remark for run in runs for remark in run.remarks] + unreadable + _missing(runs)
    data = {
        "groups": [group.label for group in grouped],
        "runs": [run.label for run in runs],
        "figures": figures.figures(grouped),
        "events": figures.events(grouped),
        "rollouts": rollouts,
    }
    title = f"{', '.join(group.label for group in grouped)} · igpo_jax report"
    script = "\n".join(_static(name) for name in _SCRIPTS)
    return document(title, _body(runs, grouped, rollouts, remarks), _static("page.css"), script, data), remarks


def _static(name: str) -> str:
    return (importlib.resources.files("igpo_jax.reporting") / "static" / name).read_text(encoding="utf-8")


def _missing(runs: Sequence[RunFolder]) -> list[str]:
    return [
        f"{label} has no {', '.join(names)}, which another run has; curves of these show the others alone"
        for label, names in groups.missing_metrics(runs).items()
    ]


def _body(
    runs: Sequence[RunFolder], grouped: Sequence[groups.Group], rollouts: dict[str, Any], remarks: Sequence[str]
) -> str:
    sections = [
        ("stages", "Stages", tables.stage_table(grouped) + _protocols(runs)),
        ("settings", "Settings that differ", tables.settings_table(grouped, groups.different_settings(grouped))),
        ("curves", "Curves", _curves(grouped)),
        ("time", "Time by phase", tables.time_tables(runs)),
        ("rollouts", "Rollouts", _browser(runs, rollouts)),
    ]
    shown = [("health", "Health", _health(runs)), *sections]
    shown = [section for section in shown if section[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    notes = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    notes = f'<aside class="remarks"><h2>Left out</h2><ul>{notes}</ul></aside>' if notes else ""
    names = "".join(f'<li><i class="swatch c{n % 8}"></i>{escape(g.label)}</li>' for n, g in enumerate(grouped))
    legend = f'<ul class="groups">{names}</ul>' if len(grouped) > 1 else ""
    heading = escape(grouped[0].label) if len(grouped) == 1 else f"{len(runs)} runs"
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{inside}</section>' for name, title, inside in shown)
    return (
        f'<header><div class="top"><h1>{heading}</h1><nav>{links}</nav></div>{legend}</header>'
        f"<main>{notes}{body}</main>"
    )


def _protocols(runs: Sequence[RunFolder]) -> str:
    lines = [(run.label, tables.protocol(run)) for run in runs]
    return "".join(f'<p class="fine"><b>{escape(label)}</b>: {escape(line)}</p>' for label, line in lines if line)


def _curves(grouped: Sequence[groups.Group]) -> str:
    several = any(len(group.runs) > 1 for group in grouped)
    band = "Where a group has several seeds, the line is their mean and the band goes from the lowest to the highest. "
    return (
        f'<p class="fine">{band if several else ""}The band around pass@1 of a single run is its 95% interval. '
        "Point at a curve for its values; click a name under it to hide or show one.</p>"
        '<div id="figures"></div>'
    )


def _health(runs: Sequence[RunFolder]) -> str:
    rows = [
        [run.label, *(str(event[name]) for name in ("stage", "step", "signature", "advice"))]
        for run in runs
        for event in run.health
    ]
    return tables.table(["run", "stage", "step", "sign", "advice"], rows) if rows else ""


def _browser(runs: Sequence[RunFolder], rollouts: dict[str, Any]) -> str:
    """The empty frame of the browser, which the script fills; a sentence where there is nothing to browse."""
    shown, total = len(rollouts["rows"]), rollouts["total"]
    if not total:
        return '<p class="fine">No rollouts were saved; rl.save_rollouts_every sets how often they are.</p>'
    if not shown:
        return f'<p class="fine">{total} saved rollouts are left out by --rollouts.</p>'
    return ("" if shown == total else _bound(rollouts)) + _FRAME


def _bound(rollouts: dict[str, Any]) -> str:
    """What of the saved rollouts is in the page."""
    shown, total = len(rollouts["rows"]), rollouts["total"]
    files, files_total = len(rollouts["files"]), rollouts["files_total"]
    which = "the first whole groups"
    if files > 1:
        which = f"of each of the {files} files the same number of whole groups, the first ones"
    if files < files_total:
        which = f"the first group of {files} of the {files_total} files"
    return (
        f'<p class="fine" id="bound">{shown} of {total} saved rollouts are in this page: {which}. '
        f"{total - shown} are left out; --rollouts={total} takes all.</p>"
    )


_FRAME = """
<div class="controls" role="toolbar" aria-label="filters">
<div id="filters" class="chips"></div>
<input id="search" type="search" placeholder="search prompt and text" aria-label="search prompt and text">
<label>step <select id="jump-file"></select></label>
<label>group <select id="jump-group"></select></label>
<output id="shown"></output>
</div>
<div class="browser">
<div id="list" tabindex="0" role="listbox" aria-label="rollouts"><div id="spacer"></div><div id="window"></div></div>
<article id="rollout" aria-live="off">
<div class="bar-of-row"><button id="previous" type="button" title="left arrow key">←</button>
<button id="next" type="button" title="right arrow key">→</button><span id="where"></span>
<span id="badges"></span></div>
<div id="mates" aria-label="the rest of the group"></div>
<h3>Prompt</h3><pre id="prompt"></pre>
<h3>Completion</h3>
<div class="slider"><button id="play" type="button">play</button>
<input id="step" type="range" min="0" value="0" aria-label="denoising steps done"><output id="count"></output></div>
<div id="text"></div>
<p class="fine legend"><span class="token hint">hint</span> given from the solution
<span class="token hint dropped">hint</span> filtered out of the loss
<span class="token early">early</span><span class="token middle">to</span><span class="token late">late</span>
order of reveal <span class="token masked">mask</span> still a mask <span class="token special">·</span> end</p>
<dl id="verdict"></dl>
<details><summary>The solution it was given</summary><pre id="trace"></pre></details>
</article>
</div>
<p class="fine">Keys: ← and → go through the list. A filter is clicked once to ask for it, twice to exclude it.</p>
"""
