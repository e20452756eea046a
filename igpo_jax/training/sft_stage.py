"""Supervised fine-tuning as a loop: data in, updates, metrics, checkpoints; it can be stopped and continued."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np

from igpo_jax.data.buckets import Batches
from igpo_jax.models import flops, llada
from igpo_jax.parallel import processes, sharding
from igpo_jax.training import console
from igpo_jax.training import sft as sft_step
from igpo_jax.training.prepared_data import sft_batches
from igpo_jax.training.run import Run
from igpo_jax.training.stage_state import Stage, StageResult, floats, make_optimizer
from igpo_jax.training.state import TrainState, create, merged_params, release
from igpo_jax.training.warmup import WarmUp


def run_sft(run: Run, params: llada.Params) -> StageResult:
    """Supervised fine-tuning on the split "sft", from ``params``.

    The batch of a step is a function of the seed and the step, so the step number is the whole state of the data.
    """
    settings, batches = run.settings.sft, sft_batches(run.settings, run.encoded["sft"])
    optimizer, schedule = make_optimizer(settings.optimizer, settings.steps)
    state = create(params, settings.lora, run.model.config, optimizer, jax.random.fold_in(run.key, 1), run.mesh)
    if state.frozen is None:
        release(params)  # the state has its own copy
    with contextlib.closing(Stage(run, "sft", settings.steps)) as stage:
        start, state = stage.restore(state)
        run.log.truncate("sft", start)
        update = sft_step.make_sft_step(run.model, settings, optimizer, schedule)
        accounts = stage.accounts(settings.lora)
        progress = console.Progress(settings.steps, "sft", start)
        mine = processes.my_rows(settings.batch_size)
        if start < settings.steps and run.settings.warm_up:
            with accounts.phase("update"):
                _warm_up(run, batches, mine, update, state)
        for step in range(start, settings.steps):
            with accounts.phase("data"):
                batch = _placed(batches.arrays(step, mine), run)
            logs = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
            with accounts.phase("update"):
                state, metrics = update(state, batch, run.key)
                # The updates since the last row run while the host goes on; here their end is waited for.
                values = floats(metrics) if logs else {}
            prompt, canvas = batch.prompt_tokens.shape[1], batch.completion_tokens.shape[1]
            work = flops.update_flops(run.model.config, 1, prompt + canvas, canvas, settings.lora)
            accounts.updated(settings.batch_size, canvas, work)
            if logs:
                stage.log(step + 1, values | accounts.row())
                stage.check_finite(values)
                progress.update(step + 1, {"loss": values["loss"], "lr": values["learning_rate"]})
            with accounts.phase("checkpoint"):
                stage.finish(step + 1, state)
        stage.end()
        return StageResult(merged_params(state), stage.elapsed(), {})


def _placed(arrays: dict[str, np.ndarray], run: Run) -> sft_step.SftBatch:
    """A batch on the devices; ``arrays`` are this process's rows."""
    return sharding.shard_batch(sft_step.SftBatch(**arrays), run.mesh)


def _warm_up(run: Run, batches: Batches, mine: slice, update: Any, state: TrainState) -> None:
    """Compiles the update for every width of the batches, the widest first, which needs the most memory."""
    warm = WarmUp("sft")
    for width in reversed(batches.widths):
        batch = _placed(batches.example(width, mine), run)
        tokens = f" at {width.prompt}+{width.completion} tokens" if len(batches.widths) > 1 else ""
        warm.compile(f"the update{tokens}", functools.partial(update.lower, state, batch, run.key))
    warm.note()
