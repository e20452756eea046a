"""Scores of token ids: raw logits, or the likelihood bound of one answer, for comparison with other implementations."""

import argparse
import functools

import jax
import numpy as np

from igpo_jax.commands.arguments import note
from igpo_jax.commands.arrays import ArrayFile, write_arrays
from igpo_jax.commands.checkpoint import Opened
from igpo_jax.diffusion import monte_carlo
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.sharding import constrain, to_host


def write_logits(chosen: argparse.Namespace, opened: Opened) -> None:
    """Reads ``input_ids`` (B, T) and perhaps ``attention_mask`` (B, T); writes ``logits`` (B, T, V) float32.

    Rows stay as they are: positions count from the row's first place, padding included, and padded places get logits
    too. The mask keeps them from being attended to.
    """
    file = ArrayFile(chosen.tokens)
    config = opened.model.config
    tokens = file.tokens("input_ids", "(B, T)", (None, None), size=config.embedding_size)
    if tokens.shape[1] > config.max_sequence_length:
        raise UserError(
            f"{file.path}: array 'input_ids' has rows of {tokens.shape[1]} tokens, but the model's rows have at most "
            f"{config.max_sequence_length}; shorten them"
        )
    valid = file.mask("attention_mask", "(B, T)", tokens.shape)
    _say_what_is_not_read(file)
    rows = min(chosen.batch, len(tokens))
    logits = []
    with opened.on_mesh():
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            # The last part is filled up, so that one program serves all.
            fill = ((0, rows - len(tokens[part])), (0, 0))
            padded = np.pad(tokens[part], fill), np.pad(valid[part], fill, constant_values=True)
            logits.append(to_host(_logits(opened.policy, opened.model, *padded))[: len(tokens[part])])
    write_arrays(chosen.output, {"logits": np.concatenate(logits)})


@functools.partial(jax.jit, static_argnums=1)
def _logits(policy: llada.Policy, model: llada.Model, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    rows = ("batch", "length")
    hidden = llada.forward(policy, model, constrain(tokens, rows), valid=constrain(valid, rows))
    return llada.head_logits(policy, model, hidden)


def write_bound(chosen: argparse.Namespace, opened: Opened, settings: monte_carlo.MonteCarlo) -> None:
    """Reads ``prompt`` (P,) and ``answer`` (L,); writes ``log_likelihood`` () and ``samples``, in nats.

    Masks come from ``perturbed`` (N, B, P + L), network inputs of N forwards, where the file has it, weighed by
    ``p_mask`` of the same shape or by their counts; else they are drawn.
    """
    file = ArrayFile(chosen.tokens)
    size = opened.model.config.embedding_size
    prompt = file.tokens("prompt", "(P,)", (None,), size=size)
    answer = file.tokens("answer", "(L,)", (None,), size=size)
    with opened.on_mesh():
        if "perturbed" in file:
            groups = _recorded(file, prompt, answer, opened.model.config)
            _say_what_is_not_read(file)
            samples = monte_carlo.bound_samples(
                opened.policy, opened.model, prompt.tolist(), answer.tolist(), groups, cfg_scale=chosen.cfg
            )
        else:
            _say_what_is_not_read(file)
            rng = np.random.default_rng(chosen.seed)
            samples = monte_carlo.draw_bound(
                opened.policy, opened.model, prompt.tolist(), answer.tolist(), settings, rng, cfg_scale=chosen.cfg
            )
    write_arrays(chosen.output, {"log_likelihood": samples.mean(), "samples": samples})


def _recorded(
    file: ArrayFile, prompt: np.ndarray, answer: np.ndarray, config: llada.ModelConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and masking probabilities of each recorded forward."""
    total = len(prompt) + len(answer)
    perturbed = file.tokens("perturbed", "(N, B, P + L)", (None, None, total), size=config.embedding_size)
    masked = perturbed == config.mask_token_id
    if not (masked | (perturbed == np.concatenate([prompt, answer]))).all() or masked[..., : len(prompt)].any():
        raise UserError(
            f"{file.path}: array 'perturbed' differs from prompt and answer in more than masked answer tokens; "
            "record it for the same pair"
        )
    masked = masked[..., len(prompt) :]
    probability = np.broadcast_to(masked.mean(axis=-1, keepdims=True), masked.shape)
    if "p_mask" in file:
        probability = file.floats("p_mask", "(N, B, P + L)", perturbed.shape)[..., len(prompt) :]
        if not (probability[masked] > 0).all():
            raise UserError(f"{file.path}: array 'p_mask' has 0 at a masked token, expected its masking probability")
    return list(zip(masked, probability, strict=True))


def _say_what_is_not_read(file: ArrayFile) -> None:
    if ignored := file.unread():
        note(f"{file.path}: arrays that are not read: {', '.join(ignored)}")
