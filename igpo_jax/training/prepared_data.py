"""The data of a run: its splits read, a tokenizer for them, and their rows as arrays, with a report of all of it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from igpo_jax.data import pipeline, report, splits, templates, tokenizers
from igpo_jax.data.buckets import Batches
from igpo_jax.data.examples import Example
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.sft import LONG_COMPLETIONS


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """What training needs of the data, and the reports that tell about it."""

    settings: RunSettings  # with the steps of SFT where they were given in epochs
    tokenizer: tokenizers.Tokenizer
    encoded: dict[str, pipeline.Encoded]  # by split: sft, rl, test
    reports: dict[str, dict[str, Any]]  # by split; JSON values


def needed(settings: RunSettings) -> tuple[str, ...]:
    """The splits that the configured stages read."""
    return (*(("sft",) if settings.sft.steps else ()), *(("rl",) if settings.rl.steps else ()), "test")


def prepare_data(settings: RunSettings, workdir: pathlib.Path) -> PreparedData:
    """Builds or opens the data sets of the configured stages and encodes their rows.

    Rows that do not fit are dropped, cut or refused by ``long_prompts`` and ``sft.long_completions``; test questions
    are never left out.

    Args:
      settings: the whole configuration.
      workdir: the run directory; its tokenizer is taken where there is one. Nothing but built data is written there.

    Raises:
      UserError: bad data, or a row that the rules refuse.
    """
    opened = {split: splits.open_split(settings.data, split, workdir / "data") for split in needed(settings)}
    tokenizer = _tokenizer(settings, opened, workdir)
    encoded = {split: _encoded(settings, split, rows, tokenizer) for split, rows in opened.items()}
    if "sft" in encoded:
        settings = settings.with_sft_rows(len(encoded["sft"]))
    reports = report.split_reports(encoded, {split: rows.report for split, rows in opened.items()})
    if "sft" in encoded:
        reports["sft"]["length_buckets"] = sft_batches(settings, encoded["sft"]).report()
    return PreparedData(settings, tokenizer, encoded, reports)


def sft_batches(settings: RunSettings, encoded: pipeline.Encoded) -> Batches:
    """The batches of the SFT stage by step."""
    sft = settings.sft
    return Batches(encoded, sft.batch_size, settings.seed, sft.length_buckets, sft.padding)


def _encoded(
    settings: RunSettings, split: str, rows: Sequence[Example], tokenizer: tokenizers.Tokenizer
) -> pipeline.Encoded:
    sft = split == "sft"
    return pipeline.encode_examples(
        rows,
        templates.get_template(settings.template),
        tokenizer,
        settings.prompt_length,
        settings.sft_length if sft else settings.sampler.length,
        long_prompts="error" if split == "test" else settings.long_prompts,
        long_completions=LONG_COMPLETIONS[settings.sft.long_completions] if sft else "keep",
    )


def _tokenizer(
    settings: RunSettings, examples: Mapping[str, Sequence[Example]], workdir: pathlib.Path
) -> tokenizers.Tokenizer:
    """The tokenizer of the run directory where there is one, else a new one."""
    stored = workdir / "tokenizer"
    if (stored / "tokenizer.json").exists():
        return tokenizers.load_tokenizer(stored, settings.tokenizer.chat)
    template = templates.get_template(settings.template)
    rows = examples.get("sft") or examples.get("rl") or examples["test"]
    texts = pipeline.tokenizer_texts(settings.data, rows, template)
    return tokenizers.build_tokenizer(settings.tokenizer, texts)
