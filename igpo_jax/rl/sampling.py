"""Requests for completions, packed into compiled denoising calls whose results are judged while the next one runs."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.parallel import processes, sharding
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
    rows: int = 0  # requests of this process
    forwards: int = 0  # denoising forwards run, summed over programs
    row_forwards_paid: int = 0  # this process's rows of the program x its forwards
    row_forwards_needed: int = 0  # what each row of this process alone would have needed

    def __add__(self, other: "SamplingCost") -> "SamplingCost":
        """The counts of two phases together."""
        names = [field.name for field in dataclasses.fields(self)]
        return SamplingCost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def of_all_processes(self) -> "SamplingCost":
        """The counts with the rows of all processes; the programs are common to them."""
        mine = [self.rows, self.row_forwards_paid, self.row_forwards_needed]
        rows, paid, needed = (int(total) for total in processes.agree_sum(np.array(mine, np.int64)))
        return SamplingCost(self.programs, rows, self.forwards, paid, needed)


def _go_on() -> None:
    """A safe point where nobody ever leaves."""


@dataclasses.dataclass(frozen=True)
class SamplerContext:
    """Everything about sampling that stays the same over a run."""

    model: llada.Model
    sampler: Sampler
    mesh: jax.sharding.Mesh
    rows_per_program: int
    seed: int
    safe_point: Callable[[], None] = _go_on  # called before each program on all processes alike; may raise to leave

    @property
    def sizes(self) -> tuple[int, ...]:
        """Program sizes: the full one and its halves, multiples of the batch shards."""
        return packing.bucket_sizes(self.rows_per_program, self.mesh.shape["data"] * self.mesh.shape["fsdp"])


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled call of the denoising loop, on its way."""

    rows: np.ndarray  # (n,) numbers of this process's requests in it, at most its places
    result: denoise.Denoised  # of all processes' rows


def sample(
    policy: llada.Policy,
    requests: Requests,
    context: SamplerContext,
    purpose: str,
    step: int,
    consume: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[Samples, SamplingCost]:
    """Samples every request; rows with like needs share a program, finished programs are consumed one call late.

    Several processes each pass their own requests, of which they may have different numbers; the programs are common
    to all of them, and each gets its own rows back.

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
    for program in _one_behind(_programs(policy, requests, context, purpose, step)):
        rows, result = program.rows, program.result
        count = len(rows)
        # Every read comes before the host's own work: what this process reads, it reads off its own devices.
        tokens[rows] = sharding.local_rows(result.tokens)[:count]
        reveal_step[rows] = sharding.local_rows(result.reveal_step)[:count]
        forwards = int(result.forwards)
        cost.programs += 1
        cost.rows += count
        cost.forwards += forwards
        cost.row_forwards_paid += result.tokens.shape[0] // jax.process_count() * forwards
        cost.row_forwards_needed += int(sharding.local_rows(result.steps_needed)[:count].sum())
        if consume is not None and count:
            consume(rows, tokens[rows])
    return Samples(tokens, reveal_step), cost


def _programs(
    policy: llada.Policy, requests: Requests, context: SamplerContext, purpose: str, step: int
) -> Iterator[Program]:
    """Launches every program, in order, as it is asked for the next one; the same ones on all processes."""
    needs = packing.forwards_needed(requests.hints < 0, context.sampler.block_length, context.sampler.steps)
    sizes = [size // jax.process_count() for size in context.sizes]
    places = processes.agree_max(len(needs))
    root = jax.random.key(context.seed)
    for pack in packing.pack(needs.tolist(), sizes, places):
        context.safe_point()
        rows = np.asarray(pack.rows, np.int64)
        yield Program(rows, _launch(policy, requests, rows, pack.size, context, (root, purpose, step)))


def _launch(
    policy: llada.Policy,
    requests: Requests,
    rows: np.ndarray,
    size: int,
    context: SamplerContext,
    keyed_by: tuple[jax.Array, str, int],
) -> denoise.Denoised:
    """Launches one program with these rows of this process in it, in ``size`` places."""
    inputs = _padded(requests, rows, size, context.model.config.eos_token_id)
    prompt_tokens, prompt_mask, hints, row_ids = sharding.shard_batch(inputs, context.mesh)
    keys = noise.row_keys(*keyed_by, row_ids)
    return denoise.denoise(
        policy,
        context.model,
        context.sampler,
        prompt_tokens,
        prompt_mask,
        noise.KeyNoise(keys),
        hints=hints,
        temperature=context.sampler.temperature,
    )


def warm_up(policy: llada.Policy, prompt_length: int, context: SamplerContext) -> None:
    """Compiles the program of every size and runs it once on rows that need no step, so that its memory is shown too.

    Args:
      policy: parameters in compute dtype.
      prompt_length: P.
      context: model, sampler, mesh, program size and seed.
    """
    nothing = Requests(
        np.zeros((0, prompt_length), np.int32),
        np.zeros((0, prompt_length), bool),
        np.zeros((0, context.sampler.length), np.int32),
        np.zeros(0, np.int64),
    )
    keyed_by = (jax.random.key(context.seed), "rollout", 0)
    for size in context.sizes:
        share = size // jax.process_count()
        jax.block_until_ready(_launch(policy, nothing, np.zeros(0, np.int64), share, context, keyed_by))


def _padded(requests: Requests, rows: np.ndarray, size: int, filler: int) -> tuple[np.ndarray, ...]:
    """This process's part of a program; extra rows are a prompt of one token under a canvas full of EOS: no step."""
    extra = size - len(rows)
    prompt = np.zeros((extra, requests.prompt_tokens.shape[1]), np.int32)
    return (
        np.concatenate([requests.prompt_tokens[rows], prompt]),
        np.concatenate([requests.prompt_mask[rows], np.arange(prompt.shape[1]) < np.ones((extra, 1))]),
        np.concatenate([requests.hints[rows], np.full((extra, requests.hints.shape[1]), filler, np.int32)]),
        np.concatenate([requests.row_ids[rows], np.zeros(extra, np.int64)]).astype(np.int32),
    )


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """Starts item n+1 before handing out item n, so that the host works while the device does."""
    waiting: collections.deque[Any] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
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
