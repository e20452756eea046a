"""What a rollout says about the policy, over the rows of all processes; the same numbers on each of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.parallel import processes
from igpo_jax.rewards.formats import format_terms
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl import advantages, hints
from igpo_jax.rl.batch import RolloutBatch
from igpo_jax.rl.sampling import SamplingCost


def first_round_stats(verdicts: Sequence[Verdict], correct: np.ndarray, cost: SamplingCost) -> dict[str, float]:
    """What the plain round says about the policy; ``correct`` is (N, G) bool, the verdicts N x G."""
    marks = np.array([[v.timed_out, v.answer is None] for v in verdicts])
    timed_out, no_answer = processes.gather_rows(marks).T
    correct = processes.gather_rows(correct)
    return {
        "pass_at_1": float(correct.mean()),
        "all_wrong_before": float((~correct.any(axis=1)).mean()),
        "all_right_before": float(correct.all(axis=1).mean()),
        "rollout_forwards": float(cost.forwards),
        "judge_timeouts": float(timed_out.sum()),
        "no_answer": float(no_answer.mean()),
    }


def format_stats(texts: Sequence[str]) -> dict[str, float]:
    """Mean format terms of the released code, a column each; logged whatever weight they have in the reward."""
    terms = [format_terms(text) for text in texts]
    means = processes.gather_rows(np.array([list(row.values()) for row in terms])).mean(axis=0)
    return {f"format_{name}": float(mean) for name, mean in zip(terms[0], means, strict=True)}


def source_stats(sources: Sequence[str], correct: np.ndarray, rescued: np.ndarray) -> dict[str, float]:
    """Pass@1, share of all-wrong groups and rescued ones by source of the trace; nothing where all have one source.

    Args:
      sources: trace source of each of this process's N questions.
      correct: (N, G) bool, verdicts of the plain round.
      rescued: (N,) bool, whether hinted completions were taken in.
    """
    mine = [
        (source, float(right.mean()), float(not right.any()), float(saved))
        for source, right, saved in zip(sources, correct, rescued, strict=True)
    ]
    rows = [row for part in processes.gather_values(mine) for row in part]
    names = sorted({row[0] for row in rows})
    stats: dict[str, float] = {}
    for name in names if len(names) > 1 else ():
        means = np.mean([row[1:] for row in rows if row[0] == name], axis=0)
        columns = ("pass_at_1", "all_wrong_before", "rescued_share")
        stats |= {f"source/{name}/{column}": float(value) for column, value in zip(columns, means, strict=True)}
    return stats


def hint_stats(placed: Sequence[tuple[hints.Hints, Any]]) -> dict[str, float]:
    """Means over the hints that all processes placed, given those of this one with their questions."""
    mine = [
        [
            float(one.ratio),
            float(np.mean(one.canvas >= 0)),
            float(one.chunks_dropped),
            float(
                hints.value_visible(
                    question.trace_text,
                    question.trace_offsets,
                    question.gold,
                    one.trace_placed(len(question.trace_tokens)),
                )
            ),
        ]
        for one, question in placed
    ]
    rows = [row for part in processes.gather_values(mine) for row in part]
    names = ("hint_ratio", "hint_share_of_canvas", "hint_chunks_dropped", "hint_value_visible")
    return {name: float(np.mean(values)) for name, values in zip(names, zip(*rows, strict=True), strict=False)}


def replacement_stats(
    batch: RolloutBatch, replaced: np.ndarray, wrong: np.ndarray, group_size: int
) -> dict[str, float]:
    """What replacement changed, and what the update will see.

    Args:
      batch: this process's B rows.
      replaced: (B,) bool.
      wrong: (W,) numbers of its groups that were all wrong.
      group_size: G.
    """
    all_wrong = np.zeros(len(replaced) // group_size, bool)
    all_wrong[wrong] = True
    groups = [np.asarray(batch.correct).reshape(-1, group_size).any(axis=1), all_wrong]
    groups.append(all_wrong & replaced.reshape(-1, group_size).any(axis=1))
    right_after, all_wrong, rescued = processes.gather_rows(np.stack(groups, axis=1)).T
    rewards = processes.gather_rows(batch.rewards)
    repeats, lengths = processes.gather_rows(_repeats(batch)).T
    zero_spread = advantages.zero_spread(rewards, group_size)
    return {
        "reward": float(np.mean(rewards)),
        "all_wrong_after": float((~right_after).mean()),
        "all_wrong_groups": float(all_wrong.sum()),
        "rescued_groups": float(rescued.sum()),
        "replaced_rows": float(processes.gather_rows(replaced).sum()),
        "zero_spread_groups": float(zero_spread.sum()),
        "zero_spread": float(zero_spread.mean()),
        "completion_length": float(lengths.mean()),
        "repeated_tokens": float(repeats.sum() / max(1.0, lengths.sum())),
    }


def _repeats(batch: RolloutBatch) -> np.ndarray:
    """(B, 2): tokens of each completion that repeat the one before them, and all of its tokens."""
    tokens, counted = np.asarray(batch.completion_tokens), np.asarray(batch.completion_mask)
    repeated = (tokens[:, 1:] == tokens[:, :-1]) & counted[:, 1:]
    return np.stack([repeated.sum(axis=1), counted.sum(axis=1)], axis=1)
