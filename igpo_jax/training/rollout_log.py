"""Saved rollouts: one JSON object a completion, with hints, order of reveal, verdict and advantage."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.rl.batch import completion_mask
from igpo_jax.rl.rollout import Rollout, Round


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
        for record in _records(rollout, kept, tokenizer):
            file.write(json.dumps(record) + "\n")
    partial.rename(path)
    return path


def _records(rollout: Rollout, kept: np.ndarray, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """First the rows that are learnt from, then every row of the second round, used or not."""
    group_size = rollout.first_correct.shape[1]
    batch = rollout.batch
    for row in range(len(rollout.rows.texts)):
        length = int(np.asarray(batch.completion_mask)[row].sum())
        learning = {
            "round": "second" if rollout.replaced[row] else "first",
            "learnt_from": True,
            "reward": float(batch.rewards[row]),
            "advantage": float(batch.advantages[row]),
            "kept": kept[row, :length].astype(int).tolist(),
        }
        yield _record(rollout, rollout.rows, row, row // group_size, length, tokenizer) | learning
    if rollout.second is None:
        return
    groups = np.repeat(np.flatnonzero(~rollout.first_correct.any(axis=1)), group_size)
    lengths = completion_mask(rollout.second.tokens, tokenizer.eos_id).sum(axis=1)
    for row, group in enumerate(groups):
        record = _record(rollout, rollout.second, row, int(group), int(lengths[row]), tokenizer)
        yield record | {"round": "second", "learnt_from": False}


def _record(rollout: Rollout, rows: Round, row: int, group: int, length: int, tokenizer: Tokenizer) -> dict[str, Any]:
    question, verdict = rollout.questions[group], rows.verdicts[row]
    return {
        "id": question.id,
        "group": group,
        "question": question.text,
        "gold": question.gold,
        "trace": question.trace_text,
        "completion": rows.texts[row],
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "hint_ratio": float(rows.ratios[row]),
        "pieces": [tokenizer.decode([int(token)]) for token in rows.tokens[row, :length]],
        "hinted": rows.hint_mask[row, :length].astype(int).tolist(),
        "reveal_step": rows.reveal_step[row, :length].tolist(),
    }
