"""Requests for completions, packed into compiled denoising calls whose results are judged while the next one runs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.rl import packing

Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class Requests:
    """R completions to sample; hints are given tokens of the canvas."""

    prompt_tokens: np.ndarray  # (R, P) int32
    prompt_mask: np.ndarray  # (R, P) bool
    hints: np.ndarray  # (R, C) int32, -1 where free
    row_ids: np.ndarray  # (R,) int64, global row numbers that key the random draws


@dataclasses.dataclass(frozen=True)
class Samples:
    """What came back for R requests."""

    tokens: np.ndarray  # (R, C) int32
    reveal_step: np.ndarray  # (R, C) int32, the step that revealed each token, -1 on hints


@dataclasses.dataclass
class SamplingCost:
    """Counts of one sampling phase, for throughput and for what lockstep batches waste."""

    programs: int = 0
    rows: int = 0
    forwards: int = 0  # denoising forwards run, summed over programs
    row_forwards_paid: int = 0  # rows of the program x its forwards
    row_forwards_needed: int = 0  # what each row alone would have needed


@dataclasses.dataclass(frozen=True)
class SamplerContext:
    """Everything about sampling that stays the same over a run."""

    model: llada.Model
    sampler: Sampler
    mesh: jax.sharding.Mesh
    rows_per_program: int
    seed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Program sizes: the full one and its halves, multiples of the batch shards."""
        return packing.bucket_sizes(self.rows_per_program, self.mesh.shape["data"] * self.mesh.shape["fsdp"])


def sample(
    policy: llada.Policy,
    requests: Requests,
    context: SamplerContext,
    purpose: str,
    step: int,
    consume: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[Samples, SamplingCost]:
    """Samples every request; rows with like needs share a program, finished programs are consumed one call late.

    Args:
      policy: parameters in compute dtype.
      requests: R rows.
      context: model, sampler, mesh, program size and seed.
      purpose: name that keys the random draws ("rollout", "inpaint", "evaluate").
      step: outer step that keys the random draws.
      consume: called with (request numbers (n,), tokens (n, C)) as soon as a program is done, while the next runs.

    Returns:
      The samples in the order of the requests, and the counts.
    """
    tokens = np.zeros_like(requests.hints)
    reveal_step = np.zeros_like(requests.hints)
    cost = SamplingCost()
    for rows, result in _one_behind(_launch(policy, requests, context, purpose, step)):
        count = len(rows)
        tokens[rows] = sharding.to_host(result.tokens)[:count]
        reveal_step[rows] = sharding.to_host(result.reveal_step)[:count]
        forwards = int(result.forwards)
        cost.programs += 1
        cost.rows += count
        cost.forwards += forwards
        cost.row_forwards_paid += result.tokens.shape[0] * forwards
        cost.row_forwards_needed += int(sharding.to_host(result.steps_needed)[:count].sum())
        if consume is not None:
            consume(rows, tokens[rows])
    return Samples(tokens, reveal_step), cost


def _launch(
    policy: llada.Policy, requests: Requests, context: SamplerContext, purpose: str, step: int
) -> Iterator[tuple[np.ndarray, denoise.Denoised]]:
    """Yields (request numbers, result still on its way) for every program, in order."""
    sampler = context.sampler
    needs = packing.forwards_needed(requests.hints < 0, sampler.block_length, sampler.steps)
    root = jax.random.key(context.seed)
    for pack in packing.pack(needs.tolist(), context.sizes):
        rows = np.asarray(pack.rows)
        inputs = _padded(requests, rows, pack.size, context.model.config.eos_token_id)
        prompt_tokens, prompt_mask, hints, row_ids = sharding.shard_batch(inputs, context.mesh)
        keys = noise.row_keys(root, purpose, step, row_ids)
        yield (
            rows,
            denoise.denoise(
                policy,
                context.model,
                sampler,
                prompt_tokens,
                prompt_mask,
                noise.KeyNoise(keys),
                hints=hints,
                temperature=sampler.temperature,
            ),
        )


def _padded(requests: Requests, rows: np.ndarray, size: int, filler: int) -> tuple[np.ndarray, ...]:
    """The rows of a program; extra rows repeat the first prompt under a canvas full of EOS, so they need no step."""
    take = np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])
    hints = requests.hints[take].copy()
    hints[len(rows) :] = filler
    return requests.prompt_tokens[take], requests.prompt_mask[take], hints, requests.row_ids[take].astype(np.int32)


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """Starts item n+1 before handing out item n, so that the host works while the device does."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def texts_of(tokens: np.ndarray, eos_id: int, decode: Decode) -> list[str]:
    """The text of each row up to its first EOS.

    Args:
      tokens: (R, C) int32.
      eos_id: the EOS token.
      decode: ids to text.
    """
    texts = []
    for row in tokens:
        ends = np.flatnonzero(row == eos_id)
        texts.append(decode(row[: ends[0]] if len(ends) else row))
    return texts
