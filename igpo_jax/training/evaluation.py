"""Pass@1 and pass@k on held-out questions, with the training sampler at another temperature."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import processes
from igpo_jax.rewards.verdict import Judge, Verdict
from igpo_jax.rl import sampling
from igpo_jax.rl.batch import completion_mask
from igpo_jax.rl.judging import Judging
from igpo_jax.rl.rollout import Question
from igpo_jax.training import statistics


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How held-out questions are answered; everything else is the sampler's."""

    questions: int = 0  #: held-out questions used, from the first; 0 = all
    samples: int = 1  #: completions per question
    temperature: float = 0.0  #: sampling temperature; 0 = greedy, as in the paper's pass@1
    every: int = 0  #: outer RL steps between two evaluations during training; 0 = only before and after a stage
    rows_per_program: int = 64  #: rows that one compiled denoising call holds

    def __post_init__(self) -> None:
        """Raises UserError for impossible counts, and for many greedy samples, which would all be equal."""
        if self.questions < 0 or self.samples < 1 or self.every < 0 or self.rows_per_program < 1:
            raise UserError("questions and every must be at least 0, samples and rows_per_program at least 1")
        if self.samples > 1 and self.temperature == 0.0:
            raise UserError(
                f"samples is {self.samples} at temperature 0, where all samples are equal; set samples to 1 or raise "
                "the temperature"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one policy."""

    correct: tuple[tuple[bool, ...], ...]  # per question, per sample
    no_answer: float  # share of completions without an answer
    mean_length: float  # tokens up to and including the first EOS
    forwards: int  # denoising forwards run

    @property
    def pass_at_1(self) -> float:
        """Mean over questions of the share of right samples."""
        return float(np.mean([np.mean(row) for row in self.correct]))

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of pass@1: Wilson for one sample a question, bootstrap over questions for several.

        Where all questions score the same a bootstrap has no width; Wilson over the questions then stands in.
        """
        shares = [float(np.mean(row)) for row in self.correct]
        if len(self.correct[0]) == 1 or len(set(shares)) == 1:
            return statistics.wilson(round(sum(shares)), len(shares))
        return statistics.bootstrap_mean(shares)

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k; k is at most the samples per question."""
        return float(np.mean([statistics.pass_at_k(len(row), sum(row), k) for row in self.correct]))

    def metrics(self) -> dict[str, float]:
        """What the metrics file stores: pass@1 with its interval, and pass@5 and pass@n where n samples allow them."""
        low, high = self.interval
        samples = len(self.correct[0])
        several = {f"pass_at_{k}": self.pass_at(k) for k in sorted({5, samples}) if 1 < k <= samples}
        return {
            "pass_at_1": self.pass_at_1,
            "pass_at_1_low": low,
            "pass_at_1_high": high,
            "questions": float(len(self.correct)),
            "no_answer": self.no_answer,
            "mean_length": self.mean_length,
            **several,
        }


@dataclasses.dataclass(frozen=True)
class Answered:
    """One completion and what the judge said of it."""

    tokens: np.ndarray  # (C,) int32
    reveal_step: np.ndarray  # (C,) int32, step that revealed each token
    text: str  # up to the first EOS
    verdict: Verdict
    length: int  # tokens up to and including the first EOS, C where there is none
    truncated: bool  # the canvas ended before the text did


def answer(
    policy: llada.Policy,
    requests: sampling.Requests,
    golds: Sequence[str],
    context: sampling.SamplerContext,
    decode: sampling.Decode,
    judge: Judge,
) -> tuple[list[Answered], sampling.SamplingCost]:
    """Samples and judges completions; training and ``igpo_jax.evaluate`` both go through here.

    Args:
      policy: parameters in compute dtype.
      requests: R rows; a row's draws depend on its ``row_ids`` and the seed, not on the rows beside it.
      golds: R right answers.
      context: model, sampler (with the evaluation's temperature), mesh, program size and seed.
      decode: ids to text.
      judge: the worker pool.

    Returns:
      The R completions in the order of the requests, and what they cost.
    """
    eos = context.model.config.eos_token_id
    with Judging(judge, golds, decode, eos) as judging:
        result, cost = sampling.sample(policy, requests, context, "evaluate", 0, judging.submit)
        texts, verdicts = judging.collect()
    ended = (result.tokens == eos).any(axis=1)
    lengths = completion_mask(result.tokens, eos).sum(axis=1)
    answered = [
        Answered(
            result.tokens[row], result.reveal_step[row], texts[row], verdicts[row], int(lengths[row]), not ended[row]
        )
        for row in range(len(golds))
    ]
    return answered, cost


def evaluate(
    policy: llada.Policy,
    questions: Sequence[Question],
    samples: int,
    context: sampling.SamplerContext,
    decode: sampling.Decode,
    judge: Judge,
) -> Evaluation:
    """Answers and judges every question; several processes share them and get the same result.

    Args:
      policy: parameters in compute dtype.
      questions: held-out questions, all of them on every process.
      samples: completions per question.
      context: model, sampler (with the evaluation's temperature), mesh, program size and seed.
      decode: ids to text.
      judge: the worker pool.
    """
    # Each process answers its part of the questions; the last ones may have fewer, or none.
    share = -(-len(questions) // jax.process_count())
    first = min(jax.process_index() * share, len(questions))
    asked = [q for q in questions[first : first + share] for _ in range(samples)]
    shown = asked or [questions[0]]
    requests = sampling.Requests(
        np.stack([q.prompt_tokens for q in shown])[: len(asked)],
        np.stack([q.prompt_mask for q in shown])[: len(asked)],
        np.full((len(asked), context.sampler.length), -1, np.int32),
        np.arange(len(asked)) + first * samples,
    )
    answered, cost = answer(policy, requests, [q.gold for q in asked], context, decode, judge)
    mine = [[each.verdict.correct, each.verdict.answer is None, each.length] for each in answered]
    rows = [row for part in processes.gather_values(mine) for row in part]
    correct = np.array([row[0] for row in rows]).reshape(-1, samples)
    return Evaluation(
        correct=tuple(tuple(bool(c) for c in row) for row in correct),
        no_answer=float(np.mean([row[1] for row in rows])),
        mean_length=float(np.mean([row[2] for row in rows])),
        forwards=cost.forwards,
    )
