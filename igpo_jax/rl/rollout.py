"""Elastic sampling: sample, judge, inpaint the groups that are all wrong, replace (Algorithm 1 of arXiv 2509.10396).

This is the only room that touches both text and device arrays.
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models import llada
from igpo_jax.rewards.formats import format_terms
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl import advantages, hints, sampling
from igpo_jax.rl.batch import RolloutBatch, completion_mask

SECOND_BATCHES = ("inpaint", "plain", "none")
REPLACE_ORDERS = ("random", "first")


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """The reward of a completion: binary correctness as in the paper, the released code's format terms on request."""

    correct: float = 1.0  #: reward of a correct completion; the released code gives 3.0
    format_weight: float = 0.0  #: weight of the released code's format terms (at most 0.75 in sum), which has 1.0


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How completions are gathered for one outer step."""

    groups: int = 64  #: questions per outer step
    group_size: int = 8  #: completions per question, G
    rows_per_program: int = 64  #: rows that one compiled denoising call holds
    second_batch: str = "inpaint"  #: for all-wrong groups: inpaint (IGPO), plain (size-matched GRPO) or none
    replace_fraction: float = 0.5  #: lambda: at most floor(lambda G) completions of a group are replaced
    replace_order: str = "random"  #: which originals go: random ones, or the first ones as in the released code

    def __post_init__(self) -> None:
        """Raises UserError for a group of one, an empty step or an unknown choice."""
        check_choice("rl.rollout.second_batch", self.second_batch, SECOND_BATCHES)
        check_choice("rl.rollout.replace_order", self.replace_order, REPLACE_ORDERS)
        if self.group_size < 2:
            raise UserError(
                f"rl.rollout.group_size is {self.group_size}, but a group of one has no advantage; use 2 or more"
            )
        if self.groups < 1 or self.rows_per_program < 1:
            raise UserError("rl.rollout.groups and rl.rollout.rows_per_program must be at least 1")
        if not 0.0 <= self.replace_fraction <= 1.0:
            raise UserError(f"rl.rollout.replace_fraction is {self.replace_fraction}, expected a share from 0 to 1")

    @property
    def rows(self) -> int:
        """Completions in one outer step, groups x group size."""
        return self.groups * self.group_size


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt with what is needed to judge it and to hint at its solution."""

    id: str
    text: str
    gold: str
    prompt_tokens: np.ndarray  # (P,) int32
    prompt_mask: np.ndarray  # (P,) bool
    trace_text: str
    trace_tokens: np.ndarray  # (n,) int32, the ground-truth completion without EOS
    trace_offsets: np.ndarray  # (n, 2) characters of trace_text
    protected: np.ndarray  # (n,) bool, never hinted


@dataclasses.dataclass
class Round:
    """R completions with their verdicts."""

    tokens: np.ndarray  # (R, C) int32
    reveal_step: np.ndarray  # (R, C) int32
    hint_mask: np.ndarray  # (R, C) bool
    texts: list[str]
    verdicts: list[Verdict]
    ratios: np.ndarray  # (R,) float64, hint ratio drawn, 0 where plain

    @property
    def correct(self) -> np.ndarray:
        """(R,) bool."""
        return np.array([v.correct for v in self.verdicts], dtype=bool)


@dataclasses.dataclass
class Rollout:
    """The outcome of one outer step's sampling, on the host."""

    batch: RolloutBatch
    rows: Round  # after replacement, B rows
    replaced: np.ndarray  # (B,) bool
    first_correct: np.ndarray  # (N, G) bool, verdicts before replacement
    second: Round | None  # G rows for each all-wrong group, in the order of the groups; None where none was drawn
    questions: Sequence[Question]
    stats: dict[str, float]


@dataclasses.dataclass(frozen=True)
class RolloutContext:
    """Everything about rollouts that stays the same over a run."""

    sampling: sampling.SamplerContext
    settings: RolloutSettings
    hint_settings: hints.HintSettings
    rewards: RewardSettings
    tokenizer: Tokenizer
    judge: JudgePool


def collect(policy: llada.Policy, questions: Sequence[Question], step: int, context: RolloutContext) -> Rollout:
    """One outer step of sampling: a plain round, a second round for the groups that are all wrong, replacement.

    Args:
      policy: the current policy in compute dtype.
      questions: N questions; each gets G completions.
      step: outer step, keys every draw.
      context: settings and helpers.

    Returns:
      The rollout with rewards and advantages after replacement.
    """
    group_size = context.settings.group_size
    clock = _Clock()
    asked = [q for q in questions for _ in range(group_size)]
    length = context.sampling.sampler.length
    plain = np.full((len(asked), length), -1, np.int32)
    row_ids = np.arange(len(asked)) + step * len(asked)
    first, first_cost = _round(policy, asked, row_ids, plain, np.zeros(len(asked)), "rollout", step, context, clock)
    clock.lap("rollout_seconds")
    first_correct = first.correct.reshape(-1, group_size)
    wrong = np.flatnonzero(~first_correct.any(axis=1))
    final, second, replaced = first, None, np.zeros(len(asked), bool)
    stats: dict[str, float] = _first_round_stats(first, first_correct, first_cost)
    if len(wrong) and context.settings.second_batch != "none":
        second_ids = row_ids.reshape(-1, group_size)[wrong].reshape(-1)
        second, second_cost, hint_stats = _second_round(policy, questions, wrong, second_ids, step, context, clock)
        rng = np.random.default_rng([context.sampling.seed, _PURPOSE_REPLACE, step])
        final, replaced = replace(first, second, wrong, context.settings, rng)
        stats |= hint_stats | {"second_forwards": float(second_cost.forwards)}
        clock.lap("inpaint_seconds")
    batch = _batch(final, asked, context)
    stats |= _replacement_stats(batch, replaced, wrong, group_size)
    return Rollout(batch, final, replaced, first_correct, second, questions, stats | clock.laps)


_PURPOSE_REPLACE = 1
_PURPOSE_HINTS = 2


class _Clock:
    """Splits wall time into laps; time the host spent judging is kept apart."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {"judge_seconds": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the running lap under ``name``."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _round(
    policy: llada.Policy,
    asked: Sequence[Question],
    row_ids: np.ndarray,
    canvas: np.ndarray,
    ratios: np.ndarray,
    purpose: str,
    step: int,
    context: RolloutContext,
    clock: _Clock,
) -> tuple[Round, sampling.SamplingCost]:
    """Samples and judges one completion for every entry of ``asked`` under its canvas of hints."""
    eos = context.sampling.model.config.eos_token_id
    texts: list[str] = [""] * len(asked)
    verdicts: list[Verdict] = [Verdict(False, None, "not judged", False)] * len(asked)

    def judge(rows: np.ndarray, tokens: np.ndarray) -> None:
        start = time.perf_counter()
        new = sampling.texts_of(tokens, eos, context.tokenizer.decode)
        found = context.judge.judge([(asked[row].gold, text) for row, text in zip(rows, new, strict=True)])
        for row, text, verdict in zip(rows, new, found, strict=True):
            texts[row], verdicts[row] = text, verdict
        clock.laps["judge_seconds"] += time.perf_counter() - start

    requests = sampling.Requests(
        np.stack([q.prompt_tokens for q in asked]),
        np.stack([q.prompt_mask for q in asked]),
        canvas,
        row_ids,
    )
    samples, cost = sampling.sample(policy, requests, context.sampling, purpose, step, judge)
    return Round(samples.tokens, samples.reveal_step, canvas >= 0, texts, verdicts, ratios), cost


def _second_round(
    policy: llada.Policy,
    questions: Sequence[Question],
    wrong: np.ndarray,
    row_ids: np.ndarray,
    step: int,
    context: RolloutContext,
    clock: _Clock,
) -> tuple[Round, sampling.SamplingCost, dict[str, float]]:
    """G more completions for each all-wrong group, hinted or plain."""
    group_size = context.settings.group_size
    asked = [questions[n] for n in wrong for _ in range(group_size)]
    if context.settings.second_batch == "plain":
        canvas = np.full((len(asked), context.sampling.sampler.length), -1, np.int32)
        second, cost = _round(policy, asked, row_ids, canvas, np.zeros(len(asked)), "second", step, context, clock)
        return second, cost, {}
    canvas, ratios, stats = hint_canvases(questions, wrong, step, context)
    second, cost = _round(policy, asked, row_ids, canvas, ratios, "inpaint", step, context, clock)
    return second, cost, stats


def hint_canvases(
    questions: Sequence[Question], wrong: np.ndarray, step: int, context: RolloutContext
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Hints for every completion of the all-wrong groups, each with a ratio of its own.

    Args:
      questions: N questions.
      wrong: numbers of the all-wrong groups.
      step: outer step; with the question's place it keys the draws.
      context: settings.

    Returns:
      Canvases (W x G, C) int32 with -1 where free, ratios (W x G,), and means of what was placed.
    """
    length = context.sampling.sampler.length
    canvases, ratios, dropped, visible = [], [], [], []
    for number in wrong:
        question = questions[number]
        rng = np.random.default_rng([context.sampling.seed, _PURPOSE_HINTS, step, int(number)])
        for ratio in hints.draw_ratios(rng, context.settings.group_size, context.hint_settings):
            placed = hints.place_hints(
                question.trace_tokens, question.protected, length, float(ratio), rng, context.hint_settings
            )
            canvases.append(placed.canvas)
            ratios.append(float(ratio))
            dropped.append(placed.chunks_dropped)
            shown = placed.trace_placed(len(question.trace_tokens))
            visible.append(hints.value_visible(question.trace_text, question.trace_offsets, question.gold, shown))
    canvas = np.stack(canvases)
    stats = {
        "hint_ratio": float(np.mean(ratios)),
        "hint_share_of_canvas": float(np.mean(canvas >= 0)),
        "hint_chunks_dropped": float(np.mean(dropped)),
        "hint_value_visible": float(np.mean(visible)),
    }
    return canvas, np.array(ratios), stats


def replace(
    first: Round, second: Round, wrong: np.ndarray, settings: RolloutSettings, rng: np.random.Generator
) -> tuple[Round, np.ndarray]:
    """Swaps verified-correct completions of the second round in, at most floor(lambda G) a group.

    Args:
      first: B = N x G rows.
      second: W x G rows, for the groups in ``wrong``, in that order.
      wrong: (W,) group numbers.
      settings: group size, lambda and the order of replacement.
      rng: chooses among the correct ones and among the originals.

    Returns:
      The mixed round and (B,) bool marks of the replaced rows.
    """
    group_size = settings.group_size
    # The tolerance is for products like 0.58 x 50, which floating point puts just below the whole number.
    limit = int(np.floor(settings.replace_fraction * group_size + 1e-9))
    source = np.full(len(first.verdicts), -1)
    for place, group in enumerate(wrong):
        good = np.flatnonzero(second.correct[place * group_size : (place + 1) * group_size])
        count = min(len(good), limit)
        chosen = np.sort(rng.choice(good, count, replace=False)) if count else good[:0]
        slots = np.arange(count)
        if settings.replace_order == "random":
            slots = np.sort(rng.choice(group_size, count, replace=False))
        source[group * group_size + slots] = place * group_size + chosen
    return _mix(first, second, source), source >= 0


def _mix(first: Round, second: Round, source: np.ndarray) -> Round:
    """Rows of ``second`` where ``source`` names one, of ``first`` elsewhere."""
    swap = source >= 0

    def arrays(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = a.copy()
        out[swap] = b[source[swap]]
        return out

    def items(a: list, b: list) -> list:
        return [b[s] if s >= 0 else x for x, s in zip(a, source, strict=True)]

    return Round(
        arrays(first.tokens, second.tokens),
        arrays(first.reveal_step, second.reveal_step),
        arrays(first.hint_mask, second.hint_mask),
        items(first.texts, second.texts),
        items(first.verdicts, second.verdicts),
        arrays(first.ratios, second.ratios),
    )


def reward_of(text: str, correct: bool, settings: RewardSettings) -> float:
    """Correctness times its reward, plus the weighted format terms where they are switched on."""
    value = settings.correct * float(correct)
    if settings.format_weight:
        value += settings.format_weight * sum(format_terms(text).values())
    return value


def _batch(rows: Round, asked: Sequence[Question], context: RolloutContext) -> RolloutBatch:
    """The device-ready arrays of a finished round."""
    group_size = context.settings.group_size
    rewards = np.array(
        [reward_of(t, v.correct, context.rewards) for t, v in zip(rows.texts, rows.verdicts, strict=True)], np.float32
    )
    return RolloutBatch(
        prompt_tokens=np.stack([q.prompt_tokens for q in asked]),
        prompt_mask=np.stack([q.prompt_mask for q in asked]),
        completion_tokens=rows.tokens,
        completion_mask=completion_mask(rows.tokens, context.sampling.model.config.eos_token_id),
        hint_mask=rows.hint_mask,
        rewards=rewards,
        correct=rows.correct,
        advantages=advantages.group_advantages(rewards, group_size),
        group_id=np.repeat(np.arange(len(asked) // group_size, dtype=np.int32), group_size),
    )


def _first_round_stats(first: Round, correct: np.ndarray, cost: sampling.SamplingCost) -> dict[str, float]:
    """What the plain round says about the policy."""
    return {
        "pass_at_1": float(correct.mean()),
        "all_wrong_before": float((~correct.any(axis=1)).mean()),
        "all_right_before": float(correct.all(axis=1).mean()),
        "rollout_forwards": float(cost.forwards),
        "judge_timeouts": float(sum(v.timed_out for v in first.verdicts)),
        "no_answer": float(np.mean([v.answer is None for v in first.verdicts])),
    }


def _replacement_stats(
    batch: RolloutBatch, replaced: np.ndarray, wrong: np.ndarray, group_size: int
) -> dict[str, float]:
    """What replacement changed, and what the update will see."""
    correct = np.asarray(batch.correct).reshape(-1, group_size)
    by_group = replaced.reshape(-1, group_size)
    rescued = int(by_group[wrong].any(axis=1).sum()) if len(wrong) else 0
    return {
        "reward": float(np.mean(batch.rewards)),
        "all_wrong_after": float((~correct.any(axis=1)).mean()),
        "all_wrong_groups": float(len(wrong)),
        "rescued_groups": float(rescued),
        "replaced_rows": float(replaced.sum()),
        "zero_spread_groups": float(advantages.zero_spread(np.asarray(batch.rewards), group_size).sum()),
        "completion_length": float(np.asarray(batch.completion_mask).sum(axis=1).mean()),
    }
