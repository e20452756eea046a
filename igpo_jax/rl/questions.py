"""Questions as a rollout needs them: prompt arrays, gold answer, and the trace with its protected tokens."""

from igpo_jax.data.pipeline import Encoded
from igpo_jax.rl import hints
from igpo_jax.rl.rollout import Question


def questions_of(encoded: Encoded, settings: hints.HintSettings) -> list[Question]:
    """One Question per encoded row; which trace tokens may be shown is decided here, once.

    Args:
      encoded: a tokenized split.
      settings: what hints must never show.
    """
    return [_question(encoded, row, settings) for row in range(len(encoded))]


def _question(encoded: Encoded, row: int, settings: hints.HintSettings) -> Question:
    example, trace = encoded.examples[row], encoded.traces[row]
    return Question(
        id=example.id,
        text=example.question,
        gold=example.gold,
        prompt_tokens=encoded.prompt_tokens[row],
        prompt_mask=encoded.prompt_mask[row],
        trace_text=trace.text,
        trace_tokens=trace.tokens,
        trace_offsets=trace.offsets,
        protected=hints.protected_tokens(trace.text, trace.offsets, example.answer, settings.exclude),
        trace_source=example.trace_source,
    )
