"""Denoising that leaves finished rows behind: between blocks the rows still at work move into a smaller program.

A batch pays for all of its rows until its slowest one is done. A row is done before that when an all-EOS block has
ended it (``eos_exit="row"``) or when hints cover what is left. The host looks at the canvases after every block; as
soon as the unfinished rows fit a smaller size, they alone go on. What a row draws is keyed by the row, so its tokens
are those of the batch that stays together.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.begin import Array, Inputs, begin, checked
from igpo_jax.diffusion.context import Context
from igpo_jax.diffusion.denoise import Denoised, denoise_block
from igpo_jax.diffusion.noise import KeyNoise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.diffusion.step import State
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import sharding

_begin = jax.jit(begin, static_argnames=("model", "sampler"))
_block = jax.jit(denoise_block)


@dataclasses.dataclass(frozen=True)
class Compacted:
    """A batch of B rows denoised in programs that shrink."""

    denoised: Denoised  # on the host; ``forwards`` are those of all its programs
    row_forwards_paid: int  # rows of each program x the forwards it ran, filler included
    sizes: tuple[int, ...]  # rows of the program that ran each block


def denoise_compacted(
    policy: llada.Policy,
    model: llada.Model,
    sampler: Sampler,
    prompt_tokens: np.ndarray,
    prompt_valid: np.ndarray,
    noise: KeyNoise | None,
    sizes: Sequence[int],
    *,
    hints: np.ndarray | None = None,
    logit_bias: np.ndarray | None = None,
) -> Compacted:
    """Samples one completion per prompt, in programs of ever fewer rows; the same tokens as denoise.denoise.

    Args:
      policy: the weights, best in the compute dtype already.
      model: static description of the network.
      sampler: static settings; each program size compiles once.
      prompt_tokens: (B, P) int32 on the host, padded on either side.
      prompt_valid: (B, P) bool on the host.
      noise: keyed draws, one key for each row; None will do where nothing is drawn.
      sizes: program sizes in ascending order that the rows may move to (rl.packing.bucket_sizes); under a mesh
        multiples of its batch shards, as B is.
      hints: (B, C) int32 on the host, -1 where free.
      logit_bias: (V,) float32 added to the logits before everything else.

    Returns:
      The completions and what they cost.

    Raises:
      UserError: as denoise.denoise, for settings that look at all rows at once or record every step, and with
        more than one process.
    """
    if sampler.eos_exit == "batch" or sampler.record:
        raise UserError(
            "sampler.eos_exit 'batch' and sampler.record need all rows together, which compaction takes apart; "
            "use eos_exit 'row' or 'none' without record"
        )
    if jax.process_count() > 1:
        raise UserError(
            "denoise_compacted moves rows between the devices of one process; use denoise.denoise with more"
        )
    inputs, static = checked(model, sampler, prompt_tokens, prompt_valid, noise, hints, None, logit_bias)
    work = _Work(policy, model, static, inputs)
    for block in range(sampler.blocks):
        work.run(block, sizes)
    forwards, needed = np.int32(work.forwards), work.needed
    done = Denoised(work.tokens, work.reveal_step, forwards, needed, None)  # type: ignore[arg-type]  # on the host
    return Compacted(done, work.paid, tuple(work.sizes))


class _Work:
    """The canvases of all rows on the host, and the program in which some of them are at work."""

    def __init__(self, policy: llada.Policy, model: llada.Model, sampler: Sampler, inputs: Inputs):
        self.policy, self.model, self.sampler, self.inputs = policy, model, sampler, inputs
        given = np.asarray(inputs.hints)
        self.rows = np.arange(len(given))  # those in the program; filler is not counted
        self.context, self.state = self._start(self.rows, len(given))
        self.tokens, self.reveal_step = (np.array(x) for x in self._fetch())
        self.needed = np.zeros(len(given), np.int32)
        self.forwards, self.paid = 0, 0
        self.sizes: list[int] = []

    def run(self, block: int, sizes: Sequence[int]) -> None:
        """Runs a block, unless every row is finished; before it the unfinished rows move where they fit."""
        masks = self.tokens[self.rows, block * self.sampler.block_length :] == self.model.config.mask_token_id
        active = self.rows[masks.any(axis=1)]
        if not len(active):
            return
        current = self.state.tokens.shape[0]
        size = next((size for size in sizes if len(active) <= size < current), current)
        if size < current:
            self._move(active, size)
        self.state, needed = _block(self.context, self.state, jnp.int32(block))
        needed = sharding.to_host(needed)
        tokens, reveal_step = self._fetch()
        count = len(self.rows)
        self.tokens[self.rows], self.reveal_step[self.rows] = tokens[:count], reveal_step[:count]
        self.needed[self.rows] += needed[:count]
        self.forwards += int(needed.max())
        self.paid += size * int(needed.max())
        self.sizes.append(size)

    def _move(self, rows: np.ndarray, size: int) -> None:
        """Goes on with ``rows`` alone, in a program of ``size`` rows."""
        self.rows = rows
        self.context, fresh = self._start(rows, size)
        # Filler has no mask left, so it asks for no step.
        filler = np.full((size - len(rows), self.sampler.length), self.model.config.eos_token_id, np.int32)
        canvases = np.concatenate([self.tokens[rows], filler]), np.concatenate([self.reveal_step[rows], filler])
        tokens, reveal_step = self._placed(canvases)
        self.state = dataclasses.replace(fresh, tokens=tokens, reveal_step=reveal_step)

    def _start(self, rows: np.ndarray, size: int) -> tuple[Context, State]:
        """The context and the first state of a program with ``rows`` and, behind them, copies of the first one."""
        take = np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])
        data = self.inputs
        prompt_tokens, prompt_valid, hints = self._placed(tuple(np.asarray(x)[take] for x in data[:3]))
        noise = data.noise
        if isinstance(noise, KeyNoise):
            (bits,) = self._placed((sharding.to_host(jax.random.key_data(noise.keys))[take],))
            noise = KeyNoise(jax.random.wrap_key_data(bits, impl=jax.random.key_impl(noise.keys)))
        inputs = Inputs(prompt_tokens, prompt_valid, hints, noise, data.temperature, data.logit_bias)
        return _begin(self.policy, inputs, model=self.model, sampler=self.sampler)

    def _fetch(self) -> tuple[np.ndarray, np.ndarray]:
        return sharding.to_host((self.state.tokens, self.state.reveal_step))

    def _placed(self, arrays: tuple[Array, ...]) -> tuple[jax.Array, ...]:
        """Host arrays (B, ...) on the device, or split over those of the mesh."""
        if not sharding.under_mesh():
            return tuple(jnp.asarray(x) for x in arrays)
        return sharding.shard_batch(arrays, jax.sharding.get_mesh())
