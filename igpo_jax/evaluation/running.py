"""The loop of an evaluation: batch after batch is sampled, judged and stored; what is stored is not asked again."""

import collections
import dataclasses
import sys
from typing import Any, TextIO

import jax

from igpo_jax.data.token_texts import token_texts
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError
from igpo_jax.evaluation.prompts import Batch
from igpo_jax.evaluation.store import Store
from igpo_jax.models import llada
from igpo_jax.parallel import processes
from igpo_jax.rewards.extraction import extract_answer
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rl import sampling
from igpo_jax.training import console
from igpo_jax.training.evaluation import Answered, answer


@dataclasses.dataclass(frozen=True)
class Model:
    """What answers: weights in compute dtype on a mesh, and their tokenizer."""

    policy: llada.Policy
    model: llada.Model
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh


def run(
    batches: list[Batch],
    store: Store,
    answering: Model,
    judges: dict[str, JudgePool],
    *,
    rows_per_program: int,
    seed: int,
    stream: TextIO | None = None,
) -> None:
    """Asks every batch that is not stored yet.

    Args:
      batches: of all suites, in order.
      store: the output folder, begun.
      answering: the model.
      judges: a running pool for each kind of gold answers.
      rows_per_program: rows of a full batch.
      seed: of the draws.
      stream: where progress goes; standard output by default.

    Raises:
      UserError: the stored samples are of another evaluation.
    """
    done = _finished(store, batches)
    total = sum(len(batch.rows) for batch in batches)
    asked = sum(len(batch.rows) for batch in batches[:done])
    progress = console.Progress(total, "eval", asked, stream or sys.stdout, unit="sample")
    if done and processes.is_main():
        console.note(f"{store.samples} holds {asked} of {total} samples; going on from there", stream)
    stored = store.read() if done and processes.is_main() else []
    right = collections.Counter(record["suite"] for record in stored if record["correct"])
    with jax.set_mesh(answering.mesh):
        for batch in batches[done:]:
            name = batch.task.suite.name
            records = _ask(batch, answering, judges[batch.task.suite.kind], rows_per_program, seed)
            asked += len(batch.rows)
            right[name] += sum(record["correct"] for record in records)
            if processes.is_main():
                store.append(records)
                progress.update(asked, {"suite": name, "right": right[name]})


def keys(batch: Batch) -> list[tuple[str, str, int]]:
    """The (suite, question id, sample) of a batch's rows, in order."""
    samples, examples = batch.task.protocol.samples, batch.task.suite.examples
    return [(batch.task.suite.name, examples[row // samples].id, row % samples) for row in batch.rows]


def _finished(store: Store, batches: list[Batch]) -> int:
    """How many batches are stored; the main process looks, and all go on from the same one."""
    return int(processes.from_main(lambda: store.finished([keys(batch) for batch in batches])))


def _ask(batch: Batch, answering: Model, judge: JudgePool, rows_per_program: int, seed: int) -> list[dict[str, Any]]:
    """The records of a batch, in order; every process samples and judges its share of the rows."""
    task = batch.task
    context = sampling.SamplerContext(answering.model, task.protocol.sampler, answering.mesh, rows_per_program, seed)
    mine = batch.rows[jax.process_index() :: jax.process_count()]
    golds = [task.suite.examples[row // task.protocol.samples].gold for row in mine]
    requests = batch.requests(mine)
    answered, _ = answer(answering.policy, requests, golds, context, answering.tokenizer.decode, judge)
    records = [_record(batch, row, each, answering.tokenizer) for row, each in zip(mine, answered, strict=True)]
    shares = processes.gather_values(records)
    return [shares[place % len(shares)][place // len(shares)] for place in range(len(batch.rows))]


def _record(batch: Batch, row: int, answered: Answered, tokenizer: Tokenizer) -> dict[str, Any]:
    """One line of samples.jsonl."""
    example = batch.task.suite.examples[row // batch.task.protocol.samples]
    verdict = answered.verdict
    tokens = answered.tokens[: answered.length]
    return {
        "suite": batch.task.suite.name,
        "id": example.id,
        "sample": row % batch.task.protocol.samples,
        "question": example.question,
        "gold": example.gold,
        "text": answered.text,
        "correct": verdict.correct,
        "answer": verdict.answer,
        "reason": verdict.reason,
        "timed_out": verdict.timed_out,
        "length": answered.length,
        "truncated": answered.truncated,
        "has_box": extract_answer(answered.text).source in ("box", "open box"),
        "pieces": token_texts(tokenizer, tokens, tokenizer.mask_id),
        "reveal_step": answered.reveal_step[: answered.length].tolist(),
    }


def require_complete(batches: list[Batch], records: list[dict[str, Any]]) -> None:
    """Raises UserError where a question has no sample, or a sample is there twice: no score is made of a part."""
    wanted = [key for batch in batches for key in keys(batch)]
    found = [(record["suite"], record["id"], record["sample"]) for record in records]
    missing = sorted(set(wanted) - set(found))
    if missing:
        suite, question, sample = missing[0]
        raise UserError(
            f"{len(missing)} of {len(wanted)} samples are missing, the first being sample {sample} of question "
            f"{question} of suite {suite}; there is no report of a part, so run the same command again"
        )
    if len(found) != len(wanted):
        raise UserError(f"there are {len(found)} samples for {len(wanted)} that were asked; name another --output")
