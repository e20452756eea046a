"""Saved rollouts: one JSON object a completion, with hints, order of reveal, verdict and advantage."""

import json
import pathlib
from typing import Any

import numpy as np

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.rl.rollout import Rollout


def save(
    workdir: pathlib.Path, stage: str, step: int, rollout: Rollout, kept: np.ndarray, tokenizer: Tokenizer
) -> pathlib.Path:
    """Writes ``rollouts/STAGE_STEP.jsonl``, whole or not at all.

    Args:
      workdir: the run directory.
      stage: name of the RL stage.
      step: outer step, from 1.
      rollout: the step's completions after replacement.
      kept: (B, C) bool, positions that the loss runs over.
      tokenizer: turns ids into the pieces that a page can colour.

    Returns:
      The file.
    """
    path = workdir / "rollouts" / f"{stage}_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for row in range(len(rollout.rows.texts)):
            file.write(json.dumps(_record(rollout, kept, tokenizer, row)) + "\n")
    partial.rename(path)
    return path


def _record(rollout: Rollout, kept: np.ndarray, tokenizer: Tokenizer, row: int) -> dict[str, Any]:
    batch, rows = rollout.batch, rollout.rows
    group_size = len(rows.texts) // len(rollout.questions)
    question, verdict = rollout.questions[row // group_size], rows.verdicts[row]
    length = int(np.asarray(batch.completion_mask)[row].sum())
    return {
        "id": question.id,
        "group": row // group_size,
        "question": question.text,
        "gold": question.gold,
        "trace": question.trace_text,
        "completion": rows.texts[row],
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "reward": float(batch.rewards[row]),
        "advantage": float(batch.advantages[row]),
        "replaced": bool(rollout.replaced[row]),
        "hint_ratio": float(rows.ratios[row]),
        "pieces": [tokenizer.decode([int(token)]) for token in rows.tokens[row, :length]],
        "hinted": rows.hint_mask[row, :length].astype(int).tolist(),
        "kept": kept[row, :length].astype(int).tolist(),
        "reveal_step": rows.reveal_step[row, :length].tolist(),
    }
