"""The whole recipe: evaluate, SFT, evaluate, IGPO, evaluate, and the table at the end."""

import json
import os
import pathlib
import shlex
from typing import Any

import jax

from igpo_jax.models import llada
from igpo_jax.parallel import processes
from igpo_jax.rewards.verdict import Judge
from igpo_jax.training import accounting, console, metrics, plots, rl_stage, sft_stage
from igpo_jax.training.files import write_whole
from igpo_jax.training.run import Run, prepare
from igpo_jax.training.run_directory import AS_BEFORE, Resuming
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.stage_state import StageResult
from igpo_jax.training.stopping import Stop

HEADER = ("stage", "pass@1", "95% interval", "all wrong before", "after second batch", "time")


def train(
    settings: RunSettings,
    workdir: pathlib.Path,
    judge: Judge,
    resuming: Resuming = AS_BEFORE,
    stop: Stop | None = None,
    lasting: bool = True,
) -> list[dict[str, Any]]:
    """Runs every configured stage in ``workdir``, going on from where an earlier run stopped.

    Args:
      settings: the whole configuration.
      workdir: the run directory.
      judge: the worker pool, running.
      resuming: what may differ from the run that ``workdir`` holds.
      stop: tells when the run is asked to end; None where nobody asks.
      lasting: whether ``workdir`` stays; else no pictures are made of it, and nobody is sent there.

    Returns:
      One row per evaluation, as stored in summary.json.

    Raises:
      Stopped: the run was asked to end; it goes on from there when it is started again.
      UserError: see ``prepare``; or too many updates in a row that are not finite, or a last checkpoint that could not
        be written.
    """
    run, params = prepare(settings, workdir, judge, resuming, stop)
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
    if processes.is_main():
        _conclude(run, rows, lasting)
    return rows


def _conclude(run: Run, rows: list[dict[str, Any]], lasting: bool) -> None:
    """What a finished run leaves besides its stages: the summary, the plots, and the tables on the console."""
    workdir, stages = run.workdir, ("sft", run.settings.name)
    write_whole(workdir / "summary.json", json.dumps(rows, indent=2) + "\n")
    console.note(console.table([_cells(row) for row in rows], HEADER))
    if spent := accounting.table(metrics.read_metrics(workdir), stages):
        console.note(f"\n{spent}\n")
        console.note(accounting.goodput_line(metrics.read_metrics(workdir)))
    if not lasting:
        return
    pictures = plots.plot_run(workdir)
    saved = len(list((workdir / "rollouts").glob("*.jsonl")))
    console.note(f"metrics, checkpoints, plots ({len(pictures)}) and files of rollouts ({saved}) are in {workdir}")
    console.note(f"one page of all of it: python -m igpo_jax.report {shlex.quote(os.path.relpath(workdir))}")


def _evaluated(run: Run, stage: str, params: llada.Params, result: StageResult | None) -> dict[str, Any]:
    """The summary row of a stage; an evaluation that an earlier run stored at the same step is not repeated."""
    stored, step = run.workdir / "evaluations" / f"{stage}.json", _last_step(run, stage)
    known = processes.from_main(lambda: json.loads(stored.read_text()) if stored.exists() else {})
    if known.get("step") != step:
        run.judge.begin(f"eval_{stage}", step)
        known = _measured(run, stage, step, params, result)
        # First the file, then the row: what a kill comes between is made up for below.
        if processes.is_main():
            write_whole(stored, json.dumps(known) + "\n")
        run.judge.forget(f"eval_{stage}", step)
        run.judge.end()
    order = float(_ORDER.get(stage, 2))
    if not any(row.values.get("after_stage") == order and row.step == step for row in run.log.rows("eval")):
        run.log.write("eval", step, _scores(known) | {"after_stage": order})
    return {name: value for name, value in known.items() if name != "correct"}


def _scores(row: dict[str, Any]) -> dict[str, float]:
    """What of a summary row the metrics file stores."""
    about_the_stage = ("stage", "step", "seconds", "correct", *rl_stage.TABLE_MEANS)
    return {name: value for name, value in row.items() if name not in about_the_stage}


#: Which evaluation a row of the stage "eval" is: two may be of the same step.
_ORDER = {"start": 0, "sft": 1}


def _measured(run: Run, stage: str, step: int, params: llada.Params, result: StageResult | None) -> dict[str, Any]:
    """The summary row of a stage's parameters, with what is only stored."""
    evaluation = run.evaluate(params)
    scores = evaluation.metrics()
    console.note(f"{stage}: pass@1 {100 * scores['pass_at_1']:.1f}% on {int(scores['questions'])} questions")
    return {
        "stage": stage,
        "step": step,
        **scores,
        **(result.means if result else {}),
        "seconds": result.seconds if result else 0.0,
        # The verdict on every question lets two runs be compared in pairs.
        "correct": [sum(samples) for samples in evaluation.correct],
    }


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
