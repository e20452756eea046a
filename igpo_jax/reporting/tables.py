"""The tables of the page as markup: stages, time by phase, settings that differ. All values are escaped."""

from collections.abc import Sequence
from typing import Any

from igpo_jax import settings
from igpo_jax.pages.document import escape
from igpo_jax.reporting.groups import Group, value_at
from igpo_jax.reporting.runs import RunFolder
from igpo_jax.training import accounting
from igpo_jax.training.console import format_duration

_SUFFIX = "_seconds"
_TITLES = accounting.PHASES | accounting.BESIDE


def table(header: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[int] = ()) -> str:
    """A table of escaped cells that scrolls sideways on a narrow screen; rows numbered in ``strong`` are bold."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ""
    for number, row in enumerate(rows):
        kind = ' class="strong"' if number in strong else ""
        body += f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def stage_table(groups: Sequence[Group]) -> str:
    """One line for each run and stage, and the mean of the seeds where a group has several; empty without any."""
    runs = [run for group in groups for run in group.runs]
    ks = sorted({k for run in runs for row in run.evaluations for k in _ks(row)})
    header = ["run", "stage", "step", "pass@1", "95% interval", *(f"pass@{k}" for k in ks)]
    header += ["no answer", "all wrong before", "after second batch", "time"]
    rows: list[list[str]] = []
    strong: list[int] = []
    for group in groups:
        for run in group.runs:
            rows += [_stage_cells(run.label, row, ks) for row in run.evaluations]
        if len(group.runs) > 1:
            means = _seed_means(group, ks)
            strong += range(len(rows), len(rows) + len(means))
            rows += means
    return table(header, rows, strong) if rows else ""


def _ks(row: dict[str, Any]) -> list[int]:
    names = [name.removeprefix("pass_at_") for name in row if name.startswith("pass_at_")]
    return [int(name) for name in names if name.isdigit() and name != "1"]


def _stage_cells(label: str, row: dict[str, Any], ks: Sequence[int]) -> list[str]:
    low, high = row.get("pass_at_1_low"), row.get("pass_at_1_high")
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    seconds = row.get("seconds") or 0
    return [
        label,
        str(row["stage"]),
        str(row.get("step", "")),
        _percent(row["pass_at_1"], 1),
        interval,
        *(_percent(row.get(f"pass_at_{k}"), 1) for k in ks),
        _percent(row.get("no_answer"), 1),
        *(_percent(row.get(name), 0) for name in ("all_wrong_before", "all_wrong_after")),
        format_duration(seconds) if seconds else "",
    ]


def _percent(value: Any, digits: int) -> str:
    return f"{100 * value:.{digits}f}%" if isinstance(value, int | float) else ""


def _seed_means(group: Group, ks: Sequence[int]) -> list[list[str]]:
    """For every stage that all seeds have finished: means, and for pass@1 the range instead of an interval."""
    by_run = [{row["stage"]: row for row in run.evaluations} for run in group.runs]
    lines = []
    for stage in [stage for stage in by_run[0] if all(stage in rows for rows in by_run)]:
        rows = [found[stage] for found in by_run]
        mean = {name: _mean([row.get(name) for row in rows]) for name in rows[0] if name != "stage"}
        scores = [100 * row["pass_at_1"] for row in rows]
        step = rows[0].get("step", "") if len({row.get("step") for row in rows}) == 1 else ""
        cells = _stage_cells(f"mean of {len(rows)} seeds", mean | {"stage": stage, "step": step}, ks)
        cells[4] = f"{min(scores):.1f} to {max(scores):.1f} (seeds)"
        lines.append(cells)
    return lines


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def phase_times(run: RunFolder) -> dict[str, dict[str, float]]:
    """Stage -> phase -> seconds over all logged rows, for metrics that end in "_seconds"; the longest phase first."""
    stages: dict[str, dict[str, float]] = {}
    for row in run.rows:
        for name, value in row.values.items():
            if name.endswith(_SUFFIX) and value >= 0:
                phases = stages.setdefault(row.stage, {})
                phase = name.removesuffix(_SUFFIX)
                phases[phase] = phases.get(phase, 0.0) + value
    return {stage: dict(sorted(phases.items(), key=lambda item: -item[1])) for stage, phases in stages.items()}


def time_tables(runs: Sequence[RunFolder]) -> str:
    """A bar and a table of the phases for every run and stage that logged times; empty without any."""
    blocks = []
    for run in runs:
        for stage, phases in phase_times(run).items():
            rows = sum(row.stage == stage for row in run.rows)
            blocks.append(_time_block(f"{run.label}: {stage}", phases, rows))
    return f'<div class="blocks">{"".join(blocks)}</div>' if blocks else ""


def _time_block(title: str, phases: dict[str, float], steps: int) -> str:
    added = {phase: seconds for phase, seconds in phases.items() if phase not in accounting.BESIDE}
    total = sum(added.values()) or 1.0
    rects, left = "", 0.0
    for number, (phase, seconds) in enumerate(added.items()):
        share = 100 * seconds / total
        tip = f"<title>{escape(phase)}: {share:.0f}%</title>"
        rects += f'<rect class="c{number % 8}" x="{left:.2f}%" width="{share:.2f}%" height="100%">{tip}</rect>'
        left += share
    lines = ""
    for phase, seconds in phases.items():
        colour = f'<i class="swatch c{list(added).index(phase) % 8}"></i>' if phase in added else ""
        part = f"{100 * seconds / total:.0f}%" if phase in added else "within"
        name = escape(_TITLES.get(phase, phase.replace("_", " ")))
        cells = (_brief(seconds), _brief(seconds / steps), part)
        lines += f"<tr><td>{colour}{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    cells = (_brief(total), _brief(total / steps), "")
    lines += f'<tr class="sum"><td>together</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    return (
        f'<section class="block"><h3>{escape(title)}</h3><svg class="bar" aria-hidden="true">{rects}</svg><table>'
        "<thead><tr><th>phase</th><th>total</th><th>each row</th><th>share</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></section>"
    )


def _brief(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 or not seconds else f"{1000 * seconds:.0f} ms"


def settings_table(groups: Sequence[Group], different: Sequence[tuple[str, Sequence[Any]]]) -> str:
    """The fields in which groups differ; empty where there are none."""
    rows = [[path, *("''" if value == "" else str(value) for value in values)] for path, values in different]
    return table(["setting", *(group.label for group in groups)], rows) if rows else ""


def protocol(run: RunFolder) -> str:
    """How the run's scores were measured, in one line; what the folder does not say is left out."""
    asked = next((row["questions"] for row in run.evaluations if "questions" in row), None)
    parts = [
        f"{asked:.0f} held-out questions" if asked else "",
        _said(run.config, "{} samples each", "evaluation.samples"),
        _said(run.config, "temperature {}", "evaluation.temperature"),
        _said(
            run.config, "length {}, {} steps, block {}", *(f"sampler.{n}" for n in ("length", "steps", "block_length"))
        ),
        _said(run.config, "template {}", "template") + _said(run.facts, " ({})", "template_hash"),
        _said(run.config, "judge {}", "judge.kind"),
        _said(run.facts, "{} {} devices", "devices", "platform"),
        _said(run.config, "compute in {}", "compute.dtype"),
        _said(run.facts, "jax {}", "jax"),
        _said(run.config, "seed {}", "seed"),
    ]
    return ", ".join(part for part in parts if part)


def _said(source: dict[str, Any], sentence: str, *paths: str) -> str:
    """The sentence with the values at ``paths``; empty where one of them is not there."""
    values = [value_at(source, path) for path in paths]
    return "" if settings.ABSENT in map(str, values) else sentence.format(*values)
