"""From examples to padded arrays, and from a step number to the rows of its batch."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from igpo_jax.data.chain import every_word
from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings
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
    sorter = _Sorter(template, tokenizer, prompt_length, completion_length, long_prompts, long_completions)
    kept = [row for row in map(sorter.encode, examples) if row is not None]
    sorter.check()
    if not kept:
        raise UserError(sorter.why_nothing_is_left())
    return _to_arrays(kept, tokenizer, prompt_length, completion_length, sorter.report(len(kept)))


def tokenizer_texts(settings: DataSettings, examples: Sequence[Example], template: Template) -> list[str]:
    """Returns the texts that a tokenizer is built from: prompts and completions of ``examples``.

    The chain task gives every word it knows instead, so that its ids depend neither on the dials nor on the rows and
    a model trained on short chains reads long ones.
    """
    sources = every_word() if settings.name == "chain" else examples
    return [
        text
        for example in sources
        for text in (template.prompt(example.question), template.completion(example.reasoning, example.answer))
    ]


def length_statistics(lengths: Sequence[int]) -> dict[str, float]:
    """Returns mean, median, 90th and 99th percentile and maximum of token counts (completions without EOS)."""
    values = np.asarray(lengths)
    # "higher" names a length that occurs, so that a limit set to it keeps at least that share.
    middle, high, highest = np.percentile(values, (50, 90, 99), method="higher")
    return {
        "mean": float(values.mean()),
        "p50": float(middle),
        "p90": float(high),
        "p99": float(highest),
        "max": float(values.max()),
    }


def length_histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Returns token counts as a histogram: ``bin`` (tokens, a power of two) and ``counts``, at most 24 bins from 0."""
    values = np.asarray(lengths)
    width = 8
    while values.max() // width >= 24:
        width *= 2
    return {"bin": width, "counts": np.bincount(values // width).tolist()}


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the rows (batch_size,) int64 of batch ``step`` of an endless stream over ``count`` rows.

    Every epoch is a new global shuffle and holds each row once; a batch may span two epochs. The stream is a function
    of its arguments only, so the step number is the whole state of the data.

    Raises:
        UserError: there are no rows, the batch is empty, or the step is negative.
    """
    if count < 1 or batch_size < 1 or step < 0:
        raise UserError(
            f"batch {step} of {batch_size} out of {count} rows does not exist; rows and batch size have to be at least"
            " 1, the step at least 0"
        )
    return np.asarray(_stream(count, batch_size, seed)[step], np.int64)


@functools.lru_cache(maxsize=16)
def _stream(count: int, batch_size: int, seed: int) -> Any:
    # Imported here because grain loads jax, and the rest of this package works without it.
    import grain

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size)


_Row = tuple[Example, list[int], Trace]
#: The settings that an error about a row names.
_WIDTH_OF = {"prompt": "prompt_length", "completion": "sft.completion_length"}
_RULE_OF = {"prompt": "long_prompts", "completion": "sft.long_completions"}


class _Sorter:
    """Encodes one row after the other, and counts those that do not fit."""

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        prompt_length: int,
        completion_length: int,
        long_prompts: str,
        long_completions: str,
    ):
        check_choice("long_prompts", long_prompts, ("error", "drop"))
        check_choice("long_completions", long_completions, ("error", "drop", "keep"))
        self.template, self.tokenizer = template, tokenizer
        self.limits = {"prompt": prompt_length, "completion": completion_length}
        self.rules = {"prompt": long_prompts, "completion": long_completions}
        self.lengths: dict[str, list[int]] = {"prompt": [], "completion": []}
        self.dropped: collections.Counter[str] = collections.Counter()
        self.refused: dict[str, list[tuple[int, str]]] = {}
        self.cut = 0

    def encode(self, example: Example) -> _Row | None:
        """Returns the row's tokens, or None where it is dropped."""
        prompt = self.tokenizer.encode_prompt(self.template.prompt(example.question), self.template.prefill)
        text = self.template.completion(example.reasoning, example.answer)
        trace = Trace(text, *self.tokenizer.encode_with_offsets(text))
        self.lengths["prompt"].append(len(prompt))
        self.lengths["completion"].append(len(trace.tokens))
        # One place of the completion belongs to the end token.
        if self._drops(example, "prompt", len(prompt)) or self._drops(example, "completion", len(trace.tokens) + 1):
            return None
        return example, prompt, trace

    def _drops(self, example: Example, part: str, found: int) -> bool:
        if found <= self.limits[part]:
            return False
        if self.rules[part] == "error":
            self.refused.setdefault(part, []).append((found, example.id))
            return True
        if self.rules[part] == "keep":
            self.cut += 1
            return False
        self.dropped[f"{part}_too_long"] += 1
        return True

    def check(self) -> None:
        """Raises UserError for the first row that the rule ``error`` refuses, with the width that all would need."""
        for part, rows in self.refused.items():
            found, first = rows[0]
            others = f"; {len(rows)} rows are longer, up to {max(rows)[0]}" if len(rows) > 1 else ""
            raise UserError(
                f"the {part} of row {first} has {found} tokens, but {part}_length is {self.limits[part]}{others};"
                f" raise {_WIDTH_OF[part]}, or, where these are rows to learn from, set {_RULE_OF[part]} to 'drop'"
            )

    def report(self, kept: int) -> dict[str, Any]:
        return {
            "template": self.template.name,
            "template_hash": self.template.hash,
            "chat_template": self.tokenizer.has_chat,
            "vocab_size": self.tokenizer.vocab_size,
            "rows": len(self.lengths["prompt"]),
            "kept": kept,
            "dropped": dict(self.dropped),
            "completions_cut": self.cut,
            **{f"{part}_length": limit for part, limit in self.limits.items()},
            **{f"{part}_tokens": length_statistics(lengths) for part, lengths in self.lengths.items()},
            **{f"{part}_histogram": length_histogram(lengths) for part, lengths in self.lengths.items()},
        }

    def why_nothing_is_left(self) -> str:
        if not self.lengths["prompt"]:
            return "there are no rows to encode; check the split and the data report"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        shortest = {part: min(lengths) for part, lengths in self.lengths.items()}
        return (
            f"no row is left ({reasons}): the shortest prompt has {shortest['prompt']} tokens and the shortest"
            f" completion {shortest['completion'] + 1}, but prompt_length is {self.limits['prompt']} and"
            f" completion_length {self.limits['completion']}; raise them"
        )


def _to_arrays(
    kept: Sequence[_Row],
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
