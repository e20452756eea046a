"""From examples to padded arrays, and from a step number to the rows of its batch."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.data.examples import Example
from igpo_jax.data.templates import Template
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Trace:
    """A completion text with its tokens, before padding: where hints are cut from."""

    text: str
    #: (n,) int32, without the end token.
    tokens: np.ndarray
    #: (n, 2) int32, the characters [start, end) of ``text`` behind each token.
    offsets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N rows as arrays, padded on the right with the end token."""

    #: (N, P) int32.
    prompt_tokens: np.ndarray
    #: (N, P) bool, True on the prompt and False on the padding.
    prompt_mask: np.ndarray
    #: (N, C) int32: the completion, then EOS to the end, all of which SFT learns.
    completion_tokens: np.ndarray
    #: (N, C) bool, True up to and including the first EOS.
    completion_mask: np.ndarray
    #: The rows' text, in the order of the arrays.
    examples: tuple[Example, ...]
    #: The rows' completions with token offsets; never cut.
    traces: tuple[Trace, ...]
    #: What went in, what was kept, what was dropped and why, and the token lengths; JSON values only.
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.examples)


def encode_examples(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    prompt_length: int,
    completion_length: int,
    *,
    long_prompts: str = "error",
    long_completions: str = "drop",
) -> Encoded:
    """Encodes ``examples`` into padded arrays.

    A completion fits when its tokens and at least one EOS fit.

    Args:
        examples: rows of text.
        template: how a row becomes a prompt and a completion.
        tokenizer: ids for both; the prompt goes through its chat template where it has one.
        prompt_length: P, the width of the prompt arrays in tokens.
        completion_length: C, the width of the completion arrays in tokens.
        long_prompts: a prompt that does not fit: ``error``, or ``drop`` the row and count it.
        long_completions: a completion that does not fit: ``drop`` the row and count it (SFT), ``keep`` it and count it
            (RL and evaluation, where the question counts and the array is not learnt; the array is cut, the trace
            is not), or ``error``.

    Raises:
        UserError: a prompt or completion is too long under the rule ``error``, or no row is left.
    """
    check_choice("long_prompts", long_prompts, ("error", "drop"))
    check_choice("long_completions", long_completions, ("error", "drop", "keep"))
    kept: list[tuple[Example, list[int], Trace]] = []
    dropped: collections.Counter[str] = collections.Counter()
    lengths: dict[str, list[int]] = {"prompt": [], "completion": []}
    cut = 0
    for example in examples:
        prompt = tokenizer.encode_prompt(template.prompt(example.question))
        trace = _trace(template.completion(example.reasoning, example.answer), tokenizer)
        lengths["prompt"].append(len(prompt))
        lengths["completion"].append(len(trace.tokens))
        if len(prompt) > prompt_length:
            _refuse(long_prompts, example, "prompt", len(prompt), prompt_length)
            dropped["prompt_too_long"] += 1
            continue
        if len(trace.tokens) + 1 > completion_length:
            _refuse(long_completions, example, "completion", len(trace.tokens) + 1, completion_length)
            if long_completions == "drop":
                dropped["completion_too_long"] += 1
                continue
            cut += 1
        kept.append((example, prompt, trace))
    if not kept:
        raise UserError(_nothing_left(len(examples), dropped, lengths, prompt_length, completion_length))
    report = {
        "template": template.name,
        "template_hash": template.hash,
        "chat_template": tokenizer.has_chat,
        "vocab_size": tokenizer.vocab_size,
        "rows": len(examples),
        "kept": len(kept),
        "dropped": dict(dropped),
        "completions_cut": cut,
        "prompt_length": prompt_length,
        "completion_length": completion_length,
        "prompt_tokens": length_statistics(lengths["prompt"]),
        "completion_tokens": length_statistics(lengths["completion"]),
    }
    return _to_arrays(kept, tokenizer, prompt_length, completion_length, report)


def length_statistics(lengths: Sequence[int]) -> dict[str, float]:
    """Returns mean, median, 90th and 99th percentile and maximum of token counts (completions without EOS)."""
    values = np.asarray(lengths)
    middle, high, highest = np.percentile(values, (50, 90, 99))
    return {
        "mean": float(values.mean()),
        "p50": float(middle),
        "p90": float(high),
        "p99": float(highest),
        "max": float(values.max()),
    }


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the rows (batch_size,) int64 of batch ``step`` of an endless stream over ``count`` rows.

    Every epoch is a new global shuffle and holds each row once; a batch may span two epochs. The stream is a function
    of its arguments only, so the step number is the whole state of the data.

    Raises:
        UserError: there are no rows, or the batch is empty.
    """
    if count < 1 or batch_size < 1:
        raise UserError(f"a batch of {batch_size} from {count} rows is not possible; both have to be at least 1")
    return np.asarray(_stream(count, batch_size, seed)[step], np.int64)


@functools.lru_cache(maxsize=16)
def _stream(count: int, batch_size: int, seed: int) -> Any:
    # Imported here because grain loads jax, and the rest of this package works without it.
    import grain

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size)


def _trace(text: str, tokenizer: Tokenizer) -> Trace:
    tokens, offsets = tokenizer.encode_with_offsets(text)
    return Trace(text, tokens, offsets)


def _refuse(rule: str, example: Example, part: str, found: int, limit: int) -> None:
    if rule == "error":
        raise UserError(
            f"the {part} of row {example.id} has {found} tokens, but {part}_length is {limit};"
            f" raise {part}_length, or set long_{part}s to 'drop'"
        )


def _nothing_left(
    rows: int, dropped: dict[str, int], lengths: dict[str, list[int]], prompt_length: int, completion_length: int
) -> str:
    if not rows:
        return "there are no rows to encode; check the split and the data report"
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return (
        f"none of {rows} rows is left ({reasons}): the shortest prompt has {min(lengths['prompt'])} tokens of"
        f" {prompt_length}, the shortest completion {min(lengths['completion']) + 1} of {completion_length};"
        " raise the lengths"
    )


def _to_arrays(
    kept: Sequence[tuple[Example, list[int], Trace]],
    tokenizer: Tokenizer,
    prompt_length: int,
    completion_length: int,
    report: dict[str, Any],
) -> Encoded:
    prompts = np.full((len(kept), prompt_length), tokenizer.pad_id, np.int32)
    prompt_mask = np.zeros((len(kept), prompt_length), bool)
    completions = np.full((len(kept), completion_length), tokenizer.eos_id, np.int32)
    completion_mask = np.zeros((len(kept), completion_length), bool)
    for row, (_, prompt, trace) in enumerate(kept):
        prompts[row, : len(prompt)] = prompt
        prompt_mask[row, : len(prompt)] = True
        tokens = trace.tokens[:completion_length]
        completions[row, : len(tokens)] = tokens
        completion_mask[row, : len(tokens) + 1] = True
    examples, _, traces = zip(*kept, strict=True)
    return Encoded(prompts, prompt_mask, completions, completion_mask, examples, traces, report)
