"""A smoke test before a long run: one tiny step of every stage of a config, saved, restored and evaluated again."""

import dataclasses
import math
import pathlib
import shutil
from typing import Any

import jax

from igpo_jax.parallel import processes
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.training import console, recipe, run_folder
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.run_settings import RunSettings

FOLDER = ".check"


def check(settings: RunSettings, workdir: pathlib.Path, judge: JudgePool) -> bool:
    """Runs the recipe with one step a stage, then once more from its checkpoints, and compares the evaluations.

    Shapes of the compiled programs stay those of the config, so what fits here fits in the run. Everything but built
    data is written to ``workdir/.check``, on the disk that the run will use, and removed at the end; a run in
    ``workdir`` is not touched.

    Args:
      settings: the config as it will be run.
      workdir: the run directory, made if missing.
      judge: the worker pool, running.

    Returns:
      Whether the restored parameters scored exactly as those that were saved.
    """
    folder, tiny = workdir / FOLDER, smallest(settings)
    run_folder.check_folder(workdir)
    if processes.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Data that is built or downloaded now need not be again.
        (workdir / "data").mkdir(exist_ok=True)
        (folder / "data").symlink_to(workdir / "data")
    try:
        processes.wait_for_all()
        first = recipe.train(tiny, folder, judge, lasting=False)
        if processes.is_main():
            shutil.rmtree(folder / "evaluations")
        processes.wait_for_all()
        second = recipe.train(tiny, folder, judge, lasting=False)
    finally:
        if processes.is_main():
            shutil.rmtree(folder, ignore_errors=True)
    wrong = [a["stage"] for a, b in zip(first, second, strict=True) if _scores(a) != _scores(b)]
    if wrong:
        console.warn(f"check: after a restore the stages {', '.join(wrong)} score differently; do not run this")
        return False
    done = f"{len(first)} evaluations, every stage ran, was saved and restored to the same scores"
    console.note(f"check: {done}{_peak()}")
    return True


def smallest(settings: RunSettings) -> RunSettings:
    """The settings with one step a stage and the fewest rows that leave every compiled program its shape."""
    sft, rl, evaluation = settings.sft, settings.rl, settings.evaluation
    rows = settings.rl.rollout.rows
    per_update, per_score = rows // rl.micro_batches, rows // rl.score_batches
    # As many groups on every process.
    fewest = math.lcm(rl.rollout.group_size * jax.process_count(), per_update, per_score)
    questions = max(1, evaluation.rows_per_program // evaluation.samples)
    return dataclasses.replace(
        settings,
        sft=dataclasses.replace(
            sft,
            steps=min(1, sft.steps),
            batch_size=sft.batch_size // sft.micro_batches,
            micro_batches=1,
            log_every=1,
            optimizer=_constant(sft.optimizer),
        ),
        rl=dataclasses.replace(
            rl,
            steps=min(1, rl.steps),
            micro_batches=fewest // per_update,
            score_batches=fewest // per_score,
            rollout=dataclasses.replace(rl.rollout, groups=fewest // rl.rollout.group_size),
            optimizer=_constant(rl.optimizer),
        ),
        evaluation=dataclasses.replace(
            evaluation, every=0, questions=min(questions, evaluation.questions or questions)
        ),
        checkpoints=dataclasses.replace(settings.checkpoints, every=1),
        tracker=dataclasses.replace(settings.tracker, service="none"),
    )


def _constant(optimizer: OptimizerSettings) -> OptimizerSettings:
    """The optimizer without warmup and decay, which do not fit into one step."""
    return dataclasses.replace(optimizer, schedule="constant", warmup_steps=0, horizon=0)


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith("seconds")}


def _peak() -> str:
    """The most memory that a device has held, where devices say so."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return f"; at most {max(held) / 2**30:.1f} GiB a device" if max(held) else ""
