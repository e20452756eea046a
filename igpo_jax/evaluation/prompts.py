"""The rows of a suite under its protocol: prompts as tokens, and the batches that they are asked in."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from igpo_jax import settings
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError
from igpo_jax.evaluation.protocols import Protocol
from igpo_jax.evaluation.suites import Suite
from igpo_jax.models import llada
from igpo_jax.rl import sampling

#: Prompt widths are multiples of this many tokens, so that the batches of a suite share a few programs.
_ROOM = 64


@dataclasses.dataclass(frozen=True)
class Task:
    """One suite, ready to be asked: Q questions, each ``protocol.samples`` times."""

    suite: Suite
    protocol: Protocol
    prompts: tuple[tuple[int, ...], ...]  # Q prompts as tokens
    chat: bool  # whether they went through the tokenizer's chat template

    @property
    def rows(self) -> int:
        """Completions in all."""
        return len(self.prompts) * self.protocol.samples

    def to_json(self) -> dict[str, Any]:
        """The whole protocol of the suite, as reports carry it."""
        template = self.protocol.template
        texts = [template.prompt(example.question) for example in self.suite.examples]
        sampler = settings.to_dict(self.protocol.sampler)
        del sampler["record"]
        return {
            "questions": len(self.suite.examples),
            "questions_of_suite": self.suite.total,
            "limited": self.suite.limited,
            "questions_sha256": self.suite.digest,
            "sources_sha256": dict(self.suite.sources),
            "kind": self.suite.kind,
            "metric": self.protocol.metric,
            "samples": self.protocol.samples,
            "template": template.name,
            "template_hash": template.hash,
            "chat_template": self.chat,
            "prompts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12],
            "sampler": sampler,
        }


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that one call asks together; row = question x samples + sample."""

    number: int  # counted over all suites
    task: Task
    rows: tuple[int, ...]
    width: int  # tokens that the prompts are padded to

    def requests(self, rows: tuple[int, ...]) -> sampling.Requests:
        """Some of the rows as arrays; what a row draws depends on its number alone."""
        tokens, mask = np.zeros((len(rows), self.width), np.int32), np.zeros((len(rows), self.width), bool)
        for place, row in enumerate(rows):
            prompt = self.task.prompts[row // self.task.protocol.samples]
            tokens[place, : len(prompt)], mask[place, : len(prompt)] = prompt, True
        hints = np.full((len(rows), self.task.protocol.sampler.length), -1, np.int32)
        return sampling.Requests(tokens, mask, hints, np.asarray(rows, np.int64))


def make_task(suite: Suite, protocol: Protocol, tokenizer: Tokenizer, config: llada.ModelConfig) -> Task:
    """Encodes the prompts of a suite.

    Raises:
      UserError: a prompt cannot be written by the tokenizer, or does not fit beside its completion; no question is
        left out for that.
    """
    longest = config.max_sequence_length - protocol.sampler.length
    if longest < 1:
        raise UserError(
            f"suite {suite.name} is asked for {protocol.sampler.length} tokens, but the model's rows have at most "
            f"{config.max_sequence_length} with the prompt; give a smaller --length"
        )
    prompts = []
    for example in suite.examples:
        try:
            prompt = tokenizer.encode_prompt(protocol.template.prompt(example.question), protocol.template.prefill)
        except UserError as error:
            raise UserError(f"question {example.id} of suite {suite.name}: {error}") from error
        if not 0 < len(prompt) <= longest:
            raise UserError(
                f"the prompt of question {example.id} of suite {suite.name} has {len(prompt)} tokens, but beside a "
                f"completion of {protocol.sampler.length} the model's rows of {config.max_sequence_length} have room "
                f"for 1 to {longest}; give a smaller --length or a shorter --template"
            )
        prompts.append(tuple(prompt))
    return Task(suite, protocol, tuple(prompts), tokenizer.has_chat)


def batches(tasks: list[Task], size: int, config: llada.ModelConfig) -> Iterator[Batch]:
    """Cuts the rows of all tasks into batches, prompts of like length together; every process and start cuts alike.

    Args:
      tasks: the suites.
      size: rows of a batch; the last one of a suite may be smaller.
      config: of the model.
    """
    number = 0
    for task in tasks:
        longest = config.max_sequence_length - task.protocol.sampler.length
        order = sorted(range(task.rows), key=functools.partial(_by_length, task))
        for start in range(0, task.rows, size):
            rows = tuple(order[start : start + size])
            widest = max(_by_length(task, row)[0] for row in rows)
            yield Batch(number, task, rows, min(-(-widest // _ROOM) * _ROOM, longest))
            number += 1


def _by_length(task: Task, row: int) -> tuple[int, int]:
    return len(task.prompts[row // task.protocol.samples]), row
