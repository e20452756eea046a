"""Saved rollouts: one JSON object a completion, with hints, order of reveal, verdict, reward and advantage."""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from igpo_jax.data.token_texts import token_texts
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.parallel import processes
from igpo_jax.rl.batch import completion_mask
from igpo_jax.rl.rollout import RewardSettings, Rollout, Round, reward_of

#: Folder of a run in which the files lie.
FOLDER = "rollouts"


def save(
    workdir: pathlib.Path,
    stage: str,
    step: int,
    rollout: Rollout,
    kept: np.ndarray,
    tokenizer: Tokenizer,
    rewards: RewardSettings,
) -> pathlib.Path:
    """Writes ``rollouts/STAGE_STEP.jsonl``, whole or not at all; docs/how_a_step_works.md lists the fields.

    The main process writes the rows of all.

    Args:
      workdir: the run directory.
      stage: name of the RL stage.
      step: outer step, from 1.
      rollout: the step's completions after replacement, those of this process.
      kept: (B, C) bool, positions of the same rows that the loss of any inner update runs over.
      tokenizer: turns ids into the pieces that a page can colour.
      rewards: what a completion earns, for those of the second round that nothing is learnt from.

    Returns:
      The file.
    """
    path = workdir / FOLDER / f"{stage}_{step:06d}.jsonl"
    parts = processes.gather_values(list(_records(rollout, kept, tokenizer, rewards)))
    if not processes.is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in sorted(itertools.chain(*parts), key=lambda record: not record["learnt_from"]):
                file.write(json.dumps({"step": step} | record) + "\n")
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk it would take the room of what matters
        raise
    return path


def forget(workdir: pathlib.Path, stage: str, step: int) -> None:
    """Deletes the files of steps after ``step``, which a run resumed there is about to make again."""
    for path in (workdir / FOLDER).glob(f"{stage}_*"):
        number = path.stem.removeprefix(f"{stage}_")
        if number.isdigit() and int(number) > step:
            path.unlink(missing_ok=True)


def _records(
    rollout: Rollout, kept: np.ndarray, tokenizer: Tokenizer, rewards: RewardSettings
) -> Iterator[dict[str, Any]]:
    """First the rows that are learnt from, then every row of the second round, used or not."""
    group_size = rollout.first_correct.shape[1]
    batch = rollout.batch
    lengths = np.asarray(batch.completion_mask).sum(axis=1)
    for row in range(len(rollout.rows.texts)):
        learning = {
            "round": "second" if rollout.replaced[row] else "first",
            "learnt_from": True,
            "replaced": bool(rollout.replaced[row]),
            "reward": float(batch.rewards[row]),
            "advantage": float(batch.advantages[row]),
            "kept": kept[row, : lengths[row]].astype(int).tolist(),
        }
        yield _record(rollout, rollout.rows, row, row // group_size, int(lengths[row]), tokenizer) | learning
    if rollout.second is None:
        return
    groups = np.repeat(np.flatnonzero(~rollout.first_correct.any(axis=1)), group_size)
    lengths = completion_mask(rollout.second.tokens, tokenizer.eos_id).sum(axis=1)
    for row, group in enumerate(groups):
        record = _record(rollout, rollout.second, row, int(group), int(lengths[row]), tokenizer)
        reward = reward_of(record["completion"], record["correct"], rewards)
        unused = {"round": "second", "learnt_from": False, "replaced": False, "reward": reward, "advantage": None}
        yield record | unused


def _record(rollout: Rollout, rows: Round, row: int, group: int, length: int, tokenizer: Tokenizer) -> dict[str, Any]:
    question, verdict = rollout.questions[group], rows.verdicts[row]
    tokens, group_size = rows.tokens[row, :length], rollout.first_correct.shape[1]
    return {
        "id": question.id,
        "group": int(np.asarray(rollout.batch.group_id)[group * group_size]),
        "question": question.text,
        "gold": question.gold,
        "trace": question.trace_text,
        "trace_source": question.trace_source,
        "completion": rows.texts[row],
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "timed_out": verdict.timed_out,
        "truncated": tokenizer.eos_id not in tokens,
        "all_wrong": bool(~rollout.first_correct[group].any()),
        "rescued": bool(rollout.replaced[group * group_size : (group + 1) * group_size].any()),
        "hint_ratio": float(rows.ratios[row]),
        "pieces": token_texts(tokenizer, tokens, tokenizer.mask_id),
        "hinted": rows.hint_mask[row, :length].astype(int).tolist(),
        "reveal_step": rows.reveal_step[row, :length].tolist(),
    }
