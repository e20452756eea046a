"""What a rewriting run leaves: the rows to train on, the counts, and the lengths before and after as a plot."""

import collections
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from igpo_jax.data.examples import Example
from igpo_jax.rewriting.acceptance import ACCEPTED, words_of
from igpo_jax.rewriting.settings import RewriteSettings
from igpo_jax.rewriting.store import Store, write_whole


def write_outputs(
    examples: Sequence[Example], settings: RewriteSettings, store: Store, prompt_hash: str
) -> dict[str, Any]:
    """Writes rewritten.jsonl, summary.json and lengths.png; each appears whole.

    Args:
        examples: all rows, in the order of the output.
        settings: for the model's name and the prices.
        store: replies and decisions.
        prompt_hash: that of the prompt.

    Returns:
        The summary.
    """
    accepted = [row for row in examples if _reason(store, row) == ACCEPTED]
    lines = [_line(row, store.decisions[row.id].reasoning, settings.model) for row in accepted]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(store.folder / "rewritten.jsonl", text)
    before = [words_of(row.reasoning) for row in accepted]
    after = [words_of(store.decisions[row.id].reasoning) for row in accepted]
    summary = _counts(examples, store) | _cost(settings, store)
    summary |= {"prompt_hash": prompt_hash, "words_before": _spread(before), "words_after": _spread(after)}
    write_whole(store.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    if accepted:
        plot_lengths(before, after, store.folder / "lengths.png")
    return summary


def _line(row: Example, reasoning: str, model: str) -> dict[str, str]:
    line = {"id": row.id, "question": row.question, "answer": row.answer, "reasoning": reasoning}
    gold = {"gold": row.gold} if row.gold != row.answer else {}
    return line | gold | {"trace_source": f"rewritten:{model}"}


def _reason(store: Store, row: Example) -> str:
    decision = store.decisions.get(row.id)
    return decision.reason if decision else "open"


def _counts(examples: Sequence[Example], store: Store) -> dict[str, Any]:
    reasons = collections.Counter(_reason(store, row) for row in examples)
    accepted, still_open = reasons.pop(ACCEPTED, 0), reasons.pop("open", 0)
    return {
        "rows": len(examples),
        "accepted": accepted,
        "rejected": dict(reasons.most_common()),
        "open": still_open,
    }


def _cost(settings: RewriteSettings, store: Store) -> dict[str, Any]:
    replies = list(store.all_replies())
    prompt, reply = sum(r.prompt_tokens for r in replies), sum(r.reply_tokens for r in replies)
    return {
        "requests": len(replies),
        "failed_requests": sum(r.kind != "reply" for r in replies),
        "last_problem": next((r.problem for r in reversed(replies) if r.problem), ""),
        "prompt_tokens": prompt,
        "reply_tokens": reply,
        "requests_with_estimated_tokens": sum(r.estimated for r in replies),
        "cost": (prompt * settings.price_prompt + reply * settings.price_reply) / 1e6,
    }


def _spread(words: Sequence[int]) -> dict[str, float]:
    if not words:
        return {}
    return {
        "mean": statistics.fmean(words),
        "median": statistics.median(words),
        "smallest": min(words),
        "largest": max(words),
    }


def plot_lengths(before: Sequence[int], after: Sequence[int], path: pathlib.Path) -> None:
    """Two histograms over one axis, in words: the accepted rows' traces before and after (the paper's Figure 7)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    largest = max(*before, *after)
    edges = [largest * place / 40 for place in range(41)]
    for words, label, colour in ((before, "before", "#9aa5b1"), (after, "after", "#2a9d5c")):
        axes.hist(words, bins=edges, alpha=0.65, color=colour, label=f"{label}, median {statistics.median(words):g}")
    axes.set(xlabel="words in the trace", ylabel="rows", title=f"{len(after)} accepted traces")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
    partial.replace(path)
