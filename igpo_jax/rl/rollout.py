"""Elastic sampling: sample, judge, inpaint the groups that are all wrong, replace (Algorithm 1 of arXiv 2509.10396).

This is the only room that touches both text and device arrays.
"""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models import llada
from igpo_jax.parallel import clock, processes
from igpo_jax.rewards.formats import format_terms
from igpo_jax.rewards.verdict import Judge, Verdict
from igpo_jax.rl import advantages, hints, sampling
from igpo_jax.rl.batch import RolloutBatch, completion_mask
from igpo_jax.rl.judging import Judging
from igpo_jax.rl.rollout_stats import first_round_stats, format_stats, hint_stats, replacement_stats, source_stats

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
    trace_source: str = ""  # who wrote the trace, as in data/examples.py


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
    """The outcome of one outer step's sampling, on the host: the rows of this process."""

    batch: RolloutBatch
    rows: Round  # after replacement, B rows
    replaced: np.ndarray  # (B,) bool
    first_correct: np.ndarray  # (N, G) bool, verdicts before replacement
    second: Round | None  # G rows for each all-wrong group, in the order of the groups; None where none was drawn
    questions: Sequence[Question]
    stats: dict[str, float]  # of the rows of all processes
    seconds: dict[str, float]  # by phase, see clock.Phases; "judge" overlaps the others, "judge_wait" is part of them
    cost: sampling.SamplingCost  # of both rounds, of all processes


@dataclasses.dataclass(frozen=True)
class RolloutContext:
    """Everything about rollouts that stays the same over a run."""

    sampling: sampling.SamplerContext
    settings: RolloutSettings
    hint_settings: hints.HintSettings
    rewards: RewardSettings
    tokenizer: Tokenizer
    judge: Judge


@dataclasses.dataclass
class Begun:
    """A round that is sampled and on its way through the judge."""

    asked: Sequence[Question]
    requests: sampling.Requests
    ratios: np.ndarray  # (R,) float64
    samples: sampling.Samples
    cost: sampling.SamplingCost
    judging: Judging
    seconds: dict[str, float]  # by phase, so far


def begin(policy: llada.Policy, questions: Sequence[Question], step: int, context: RolloutContext) -> Begun:
    """Samples the plain round of a step; arguments as for ``collect``, which goes on while the judge is at work."""
    asked = [q for q in questions for _ in range(context.settings.group_size)]
    length = context.sampling.sampler.length
    everyone = len(asked) * jax.process_count()
    # Rows are numbered through all processes and all steps.
    row_ids = np.arange(len(asked)) + processes.my_rows(everyone).start + step * everyone
    phases = clock.Phases()
    with phases.phase("rollout"):
        requests = _requests(asked, np.full((len(asked), length), -1, np.int32), row_ids)
        begun = _sampled(policy, asked, requests, np.zeros(len(asked)), "rollout", step, context)
    return dataclasses.replace(begun, seconds=phases.seconds)


def collect(
    policy: llada.Policy, questions: Sequence[Question], step: int, context: RolloutContext, begun: Begun | None = None
) -> Rollout:
    """One outer step of sampling: a plain round, a second round for the groups that are all wrong, replacement.

    Args:
      policy: the current policy in compute dtype.
      questions: this process's N questions, as many as every other's; each gets G completions.
      step: outer step, keys every draw.
      context: settings and helpers.
      begun: what ``begin`` returned for the same arguments, where the plain round was sampled beforehand.

    Returns:
      The rollout with rewards and advantages after replacement: this process's rows, statistics of all.
    """
    begun = begun or begin(policy, questions, step, context)
    group_size = context.settings.group_size
    phases = clock.Phases()
    phases.seconds |= begun.seconds
    with phases.phase("rollout"):
        first = _judged(begun, phases)
    first_correct = first.correct.reshape(-1, group_size)
    wrong = np.flatnonzero(~first_correct.any(axis=1))
    final, second, replaced, cost = first, None, np.zeros(len(begun.asked), bool), begun.cost
    stats = first_round_stats(first.verdicts, first_correct, cost)
    # The second round is common: no process may skip what another one launches.
    if context.settings.second_batch != "none" and processes.agree_any(len(wrong) > 0):
        with phases.phase("inpaint"):
            second_ids = begun.requests.row_ids.reshape(-1, group_size)[wrong].reshape(-1)
            second, more, hint_stats = _second_round(policy, questions, wrong, second_ids, step, context, phases)
            rng = np.random.default_rng([context.sampling.seed, _PURPOSE_REPLACE, step])
            final, replaced = replace(first, second, wrong, context.settings, rng)
        stats |= hint_stats | {"second_forwards": float(more.forwards)}
        cost = cost + more
    batch = _batch(final, begun.asked, context)
    stats |= replacement_stats(batch, replaced, wrong, group_size) | format_stats(final.texts)
    rescued = np.asarray(replaced.reshape(-1, group_size).any(axis=1))
    stats |= source_stats([question.trace_source for question in questions], first_correct, rescued)
    counts = cost.of_all_processes()
    return Rollout(batch, final, replaced, first_correct, second, questions, stats, phases.seconds, counts)


_PURPOSE_REPLACE = 1
_PURPOSE_HINTS = 2


def _first_group(groups: int) -> int:
    """Number, among those of all processes, of the first of this process's ``groups`` groups."""
    return processes.my_rows(groups * jax.process_count()).start


def _requests(asked: Sequence[Question], canvas: np.ndarray, row_ids: np.ndarray) -> sampling.Requests:
    tokens, mask = np.stack([q.prompt_tokens for q in asked]), np.stack([q.prompt_mask for q in asked])
    return sampling.Requests(tokens, mask, canvas, row_ids)


def _sampled(
    policy: llada.Policy,
    asked: Sequence[Question],
    requests: sampling.Requests,
    ratios: np.ndarray,
    purpose: str,
    step: int,
    context: RolloutContext,
) -> Begun:
    """Samples one completion for every entry of ``asked``; each program is judged while the next one runs."""
    eos = context.sampling.model.config.eos_token_id
    judging = Judging(context.judge, [q.gold for q in asked], context.tokenizer.decode, eos)
    try:
        samples, cost = sampling.sample(policy, requests, context.sampling, purpose, step, judging.submit)
    except BaseException:
        judging.close(wait=False)
        raise
    return Begun(asked, requests, ratios, samples, cost, judging, {})


def _judged(begun: Begun, phases: clock.Phases) -> Round:
    """Waits for the verdicts of a sampled round."""
    start = time.perf_counter()
    with begun.judging as judging:
        texts, verdicts = judging.collect()
    phases.add("judge", judging.seconds)
    phases.add("judge_wait", time.perf_counter() - start)
    samples = begun.samples
    return Round(samples.tokens, samples.reveal_step, begun.requests.hints >= 0, texts, verdicts, begun.ratios)


def _second_round(
    policy: llada.Policy,
    questions: Sequence[Question],
    wrong: np.ndarray,
    row_ids: np.ndarray,
    step: int,
    context: RolloutContext,
    phases: clock.Phases,
) -> tuple[Round, sampling.SamplingCost, dict[str, float]]:
    """G more completions for each all-wrong group, hinted or plain; a process without such a group takes part idly."""
    asked = [questions[n] for n in wrong for _ in range(context.settings.group_size)]
    canvas = np.full((len(asked), context.sampling.sampler.length), -1, np.int32)
    ratios, purpose, stats = np.zeros(len(asked)), "second", dict[str, float]()
    if context.settings.second_batch == "inpaint":
        canvas, ratios, stats = hint_canvases(questions, wrong, step, context)
        purpose = "inpaint"
    # Without a row of its own a process still names the prompts' width.
    shown = _requests(asked or questions[:1], canvas, row_ids)
    requests = dataclasses.replace(
        shown, prompt_tokens=shown.prompt_tokens[: len(asked)], prompt_mask=shown.prompt_mask[: len(asked)]
    )
    begun = _sampled(policy, asked, requests, ratios, purpose, step, context)
    return _judged(begun, phases), begun.cost, stats


def hint_canvases(
    questions: Sequence[Question], wrong: np.ndarray, step: int, context: RolloutContext
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Hints for every completion of the all-wrong groups, each with a ratio of its own.

    Args:
      questions: this process's N questions.
      wrong: numbers of the all-wrong groups among them.
      step: outer step; with the question's place in the whole step it keys the draws.
      context: settings.

    Returns:
      Canvases (W x G, C) int32 with -1 where free, ratios (W x G,), and means of what all processes placed.
    """
    placed: list[tuple[hints.Hints, Question]] = []
    before = _first_group(len(questions))
    for number in wrong:
        question = questions[number]
        rng = np.random.default_rng([context.sampling.seed, _PURPOSE_HINTS, step, before + int(number)])
        for ratio in hints.draw_ratios(rng, context.settings.group_size, context.hint_settings):
            length = context.sampling.sampler.length
            one = hints.place_hints(
                question.trace_tokens, question.protected, length, float(ratio), rng, context.hint_settings
            )
            placed.append((one, question))
    canvas = np.full((len(placed), context.sampling.sampler.length), -1, np.int32)
    for row, (one, _) in enumerate(placed):
        canvas[row] = one.canvas
    ratios = np.array([one.ratio for one, _ in placed], np.float64)
    return canvas, ratios, hint_stats(placed)


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
    # Which is swapped for which is drawn over the groups of all processes, in order, by all of them alike.
    everyone = processes.gather_values(second.correct.reshape(-1, group_size).tolist())
    before = sum(len(part) for part in everyone[: jax.process_index()])
    drawn = [_choose(np.flatnonzero(good), settings, rng) for part in everyone for good in part]
    source = np.full(len(first.verdicts), -1)
    for place, group in enumerate(wrong):
        slots, chosen = drawn[before + place]
        source[group * group_size + slots] = place * group_size + chosen
    return _mix(first, second, source), source >= 0


def _choose(good: np.ndarray, settings: RolloutSettings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """For one group: places of the originals that go, and the correct completions that come, both ascending."""
    # The tolerance is for products like 0.58 x 50, which floating point puts just below the whole number.
    limit = int(np.floor(settings.replace_fraction * settings.group_size + 1e-9))
    count = min(len(good), limit)
    chosen = np.sort(rng.choice(good, count, replace=False)) if count else good[:0]
    slots = np.arange(count)
    if settings.replace_order == "random":
        slots = np.sort(rng.choice(settings.group_size, count, replace=False))
    return slots, chosen


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
    groups = len(asked) // group_size
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
        group_id=np.repeat(np.arange(groups, dtype=np.int32) + np.int32(_first_group(groups)), group_size),
    )
