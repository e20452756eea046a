"""Generation from token ids: arrays in, every denoising step out, through the same compiled loop as in training."""

import argparse
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.commands import hint_flags, sampler_flags
from igpo_jax.commands.arguments import note
from igpo_jax.commands.arrays import ArrayFile, write_arrays
from igpo_jax.commands.checkpoint import Opened
from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError
from igpo_jax.parallel.sharding import to_host


def generate(chosen: argparse.Namespace, opened: Opened) -> None:
    """Reads ``--tokens``, denoises, and writes ``--output``; docs/generation.md lists the arrays of both."""
    file = ArrayFile(chosen.tokens)
    vocabulary = opened.model.config.embedding_size
    prompt = file.tokens("prompt", "(B, P)", (None, None), size=vocabulary)
    valid = file.mask("attention_mask", "(B, P)", prompt.shape)
    given = _hints(file, vocabulary, len(prompt))
    sampler = sampler_flags.read(chosen, opened, None if given is None else given.shape[1])
    sampler = dataclasses.replace(sampler, record=True)
    if "trace" in file:
        if given is not None:
            raise UserError(f"{file.path} has both 'hints' and 'trace'; leave one of them out")
        trace = file.tokens("trace", "(n,)", (None,), size=vocabulary)
        given = hint_flags.official(trace, chosen, opened, sampler.length, len(prompt))
    bias = None
    if "logit_bias" in file:
        bias = file.floats("logit_bias", "(V,)", (vocabulary,)).astype(np.float32)
    source = _noise(file, sampler, prompt, chosen.seed, vocabulary)
    if isinstance(source, noise.RecordedNoise) and source.gumbels is not None:
        sampler = dataclasses.replace(sampler, draw="gumbel")
    if ignored := file.unread():
        note(f"{file.path}: arrays that are not read: {', '.join(ignored)}")
    hints = np.full((len(prompt), sampler.length), -1, np.int32) if given is None else given
    with opened.on_mesh():
        done = denoise.denoise(
            opened.policy, opened.model, sampler, prompt, valid, source, hints=hints, logit_bias=bias
        )
        done = jax.tree.map(to_host, done)
    write_arrays(chosen.output, _rows(prompt, hints, done, sampler, opened.model.config.mask_token_id))


def _hints(file: ArrayFile, vocabulary: int, rows: int) -> np.ndarray | None:
    if "hints" not in file:
        return None
    return file.tokens("hints", "(B, G)", (rows, None), size=vocabulary, free=-1)


def _noise(file: ArrayFile, sampler: Sampler, prompt: np.ndarray, seed: int, vocabulary: int) -> noise.Noise | None:
    """Recorded draws where the file has some, else draws keyed by seed and row."""
    if "draws" not in file:
        keys = noise.row_keys(jax.random.key(seed), "generate", 0, np.arange(len(prompt)))
        return noise.KeyNoise(keys)
    row = (sampler.steps, len(prompt), prompt.shape[1] + sampler.length)
    draws = file.floats("draws", "(steps, B, P + G) or (steps, B, P + G, V)", row, (*row, vocabulary))
    if sampler.temperature == 0 and sampler.selection != "random":
        raise UserError(f"{file.path} has 'draws', but nothing is drawn at --temperature 0; leave one of them out")
    starts = prompt.shape[1] + np.arange(sampler.steps) // sampler.steps_per_block * sampler.block_length
    blocks = [step[:, at : at + sampler.block_length] for step, at in zip(draws, starts, strict=True)]
    if draws.ndim == 3:
        return noise.RecordedNoise(uniforms=jnp.asarray(np.stack(blocks), jnp.float32))
    with np.errstate(divide="ignore"):
        return noise.RecordedNoise(gumbels=jnp.asarray(-np.log(-np.log(np.stack(blocks))), jnp.float32))


def _rows(
    prompt: np.ndarray, hints: np.ndarray, done: denoise.Denoised, sampler: Sampler, mask_id: int
) -> dict[str, Any]:
    """Everything in the order of the input row: the prompt where it was, padding included, then the completion."""
    trace = cast(denoise.Trace, done.trace)
    steps = np.flatnonzero(trace.ran)
    width, block = prompt.shape[1], steps // sampler.steps_per_block
    given = (hints >= 0) & (hints != mask_id)
    first = np.concatenate([prompt, np.where(given, hints, mask_id)], axis=1).astype(np.int32)
    after = np.concatenate([np.broadcast_to(prompt, (len(steps), *prompt.shape)), trace.tokens[steps]], axis=2)
    before = np.concatenate([first[None], after])[: len(steps)]

    def in_row(values: Any, elsewhere: np.ndarray) -> np.ndarray:
        """Values (S, B, K) of each step's block within whole rows (S, B, T)."""
        rows = elsewhere.copy()
        for row, value, at in zip(rows, values[steps], width + block * sampler.block_length, strict=True):
            row[:, at : at + sampler.block_length] = value
        return rows

    masked = np.zeros(after.shape, bool)
    masked = in_row(np.ones((sampler.steps, len(prompt), sampler.block_length), bool), masked) & (before == mask_id)
    transfer = in_row(trace.revealed, np.zeros(after.shape, bool))
    return {
        "final": np.concatenate([prompt, done.tokens], axis=1),
        "first_input": first,
        "fixed_positions": np.concatenate([np.ones_like(prompt, dtype=bool), given], axis=1),
        "x_after": after.astype(np.int32),
        "x0": np.where(masked, in_row(trace.choice, before), before).astype(np.int32),
        "confidence": in_row(trace.confidence, np.full(after.shape, -np.inf, np.float32)),
        "transfer": transfer,
        "k": transfer.sum(axis=2).astype(np.int32),
        "block": block.astype(np.int32),
        "step_in_block": (steps % sampler.steps_per_block).astype(np.int32),
        "reveal_step": done.reveal_step,
    }
