"""Pass@1 and pass@k on held-out questions, with the training sampler at another temperature."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.rl import sampling
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
        """What the metrics file stores."""
        low, high = self.interval
        samples = len(self.correct[0])
        several = {f"pass_at_{samples}": self.pass_at(samples)} if samples > 1 else {}
        return {
            "pass_at_1": self.pass_at_1,
            "pass_at_1_low": low,
            "pass_at_1_high": high,
            "questions": float(len(self.correct)),
            "no_answer": self.no_answer,
            "mean_length": self.mean_length,
            **several,
        }


def evaluate(
    policy: llada.Policy,
    questions: Sequence[Question],
    samples: int,
    context: sampling.SamplerContext,
    decode: sampling.Decode,
    judge: JudgePool,
) -> Evaluation:
    """Answers and judges every question.

    Args:
      policy: parameters in compute dtype.
      questions: held-out questions.
      samples: completions per question.
      context: model, sampler (with the evaluation's temperature), mesh, program size and seed.
      decode: ids to text.
      judge: the worker pool.
    """
    asked = [q for q in questions for _ in range(samples)]
    verdicts: list[Verdict] = [Verdict(False, None, "not judged", False)] * len(asked)
    eos = context.model.config.eos_token_id

    def consume(rows: np.ndarray, tokens: np.ndarray) -> None:
        texts = sampling.texts_of(tokens, eos, decode)
        found = judge.judge([(asked[row].gold, text) for row, text in zip(rows, texts, strict=True)])
        for row, verdict in zip(rows, found, strict=True):
            verdicts[row] = verdict

    requests = sampling.Requests(
        np.stack([q.prompt_tokens for q in asked]),
        np.stack([q.prompt_mask for q in asked]),
        np.full((len(asked), context.sampler.length), -1, np.int32),
        np.arange(len(asked)),
    )
    result, cost = sampling.sample(policy, requests, context, "evaluate", 0, consume)
    correct = np.array([v.correct for v in verdicts]).reshape(-1, samples)
    ends = (np.cumsum(result.tokens == eos, axis=1) == 0).sum(axis=1) + 1
    return Evaluation(
        correct=tuple(tuple(bool(c) for c in row) for row in correct),
        no_answer=float(np.mean([v.answer is None for v in verdicts])),
        mean_length=float(np.minimum(ends, context.sampler.length).mean()),
        forwards=cost.forwards,
    )
