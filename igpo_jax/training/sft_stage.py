"""Supervised fine-tuning as a loop: data in, updates, metrics, checkpoints; it can be stopped and continued."""

import contextlib

import jax

from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.training import console
from igpo_jax.training import sft as sft_step
from igpo_jax.training.prepared_data import sft_batches
from igpo_jax.training.run import Run
from igpo_jax.training.stage_state import Stage, StageResult, floats, make_optimizer
from igpo_jax.training.state import create, merged_params


def run_sft(run: Run, params: llada.Params) -> StageResult:
    """Supervised fine-tuning on the split "sft", from ``params``.

    The batch of a step is a function of the seed and the step, so the step number is the whole state of the data.
    """
    settings, batches = run.settings.sft, sft_batches(run.settings, run.encoded["sft"])
    optimizer, schedule = make_optimizer(settings.optimizer, settings.steps)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 1), run.mesh)
    with contextlib.closing(Stage(run, "sft", settings.steps)) as stage:
        start, state = stage.restore(state)
        run.log.truncate("sft", start)
        update = sft_step.make_sft_step(run.model, settings, optimizer, schedule)
        progress = console.Progress(settings.steps, "sft", start)
        for step in range(start, settings.steps):
            batch = sft_step.SftBatch(**batches.arrays(step))
            state, metrics = update(state, sharding.shard_batch(batch, run.mesh), run.key)
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                values = floats(metrics)
                stage.log(step + 1, values)
                stage.check_finite(values)
                progress.update(step + 1, {"loss": values["loss"], "lr": values["learning_rate"]})
            stage.finish(step + 1, state)
        stage.end()
        return StageResult(merged_params(state), stage.elapsed(), {})
