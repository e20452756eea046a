"""The whole recipe: evaluate, SFT, evaluate, IGPO, evaluate, and the table at the end."""

import json
import pathlib
from typing import Any

import jax

from igpo_jax.models import llada
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.training import console, plots, rl_stage, sft_stage
from igpo_jax.training.run import Run, prepare
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.stage_state import StageResult

HEADER = ("stage", "pass@1", "95% interval", "all wrong before", "after second batch", "time")


def train(settings: RunSettings, workdir: pathlib.Path, judge: JudgePool) -> list[dict[str, Any]]:
    """Runs every configured stage in ``workdir``, going on from where an earlier run stopped.

    Args:
      settings: the whole configuration.
      workdir: the run directory.
      judge: the worker pool, running.

    Returns:
      One row per evaluation, as stored in summary.json.
    """
    run, params = prepare(settings, workdir, judge)
    with jax.set_mesh(run.mesh):
        rows = [_evaluated(run, "start", params, None)]
        if settings.sft.steps:
            result = sft_stage.run_sft(run, params)
            params = result.params
            rows.append(_evaluated(run, "sft", params, result))
        if settings.rl.steps:
            result = rl_stage.run_rl(run, params)
            rows.append(_evaluated(run, settings.name, result.params, result))
    run.log.close()
    (workdir / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    pictures = plots.plot_run(workdir)
    console.note(console.table([_cells(row) for row in rows], HEADER))
    saved = len(list((workdir / "rollouts").glob("*.jsonl")))
    console.note(f"metrics, checkpoints, {len(pictures)} plots and {saved} files of rollouts are in {workdir}")
    return rows


def _evaluated(run: Run, stage: str, params: llada.Params, result: StageResult | None) -> dict[str, Any]:
    """The summary row of a stage; an evaluation that an earlier run stored at the same step is not repeated."""
    stored, step = run.workdir / "evaluations" / f"{stage}.json", _last_step(run, stage)
    if stored.exists():
        known = json.loads(stored.read_text())
        if known.get("step") == step:
            return {name: value for name, value in known.items() if name != "correct"}
    evaluation = run.evaluate(params)
    scores = evaluation.metrics()
    run.log.write("eval", step, scores | {"after_stage": 1.0})
    row: dict[str, Any] = {
        "stage": stage,
        "step": step,
        **scores,
        **(result.means if result else {}),
        "seconds": result.seconds if result else 0.0,
    }
    stored.parent.mkdir(exist_ok=True)
    partial = stored.with_suffix(".partial")
    # The verdict on every question lets two runs be compared in pairs.
    detail = row | {"correct": [sum(samples) for samples in evaluation.correct]}
    partial.write_text(json.dumps(detail) + "\n")
    partial.rename(stored)
    console.note(f"{stage}: pass@1 {100 * row['pass_at_1']:.1f}% on {int(row['questions'])} questions")
    return row


def _last_step(run: Run, stage: str) -> int:
    return {"start": 0, "sft": run.settings.sft.steps}.get(stage, run.settings.rl.steps)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the final table."""
    before, after = row.get("all_wrong_before"), row.get("all_wrong_after")
    return (
        row["stage"],
        f"{100 * row['pass_at_1']:.1f}%",
        f"{100 * row['pass_at_1_low']:.1f} to {100 * row['pass_at_1_high']:.1f}",
        "" if before is None else f"{100 * before:.0f}%",
        "" if after is None else f"{100 * after:.0f}%",
        console.format_duration(row["seconds"]),
    )
