import json
import re

import numpy as np
import pytest

from igpo_jax.data import DataSettings, Example, chain
from igpo_jax.data.pipeline import batch_indices, encode_examples, length_statistics, tokenizer_texts
from igpo_jax.data.templates import get_template
from igpo_jax.data.tokenizers import TokenizerSettings, build_tokenizer
from igpo_jax.errors import UserError

PLAIN = get_template("plain")
ROWS = chain.generate(DataSettings(sft_rows=30, rl_rows=5, test_rows=5, sft_lengths=(1, 2, 3)))["sft"]


@pytest.fixture(scope="module")
def words():
    return build_tokenizer(TokenizerSettings(), tokenizer_texts(DataSettings(), [], PLAIN))


def test_arrays(words):
    encoded = encode_examples(ROWS, PLAIN, words, 40, 32)
    assert len(encoded) == 30 and encoded.examples == tuple(ROWS)
    assert encoded.prompt_tokens.shape == encoded.prompt_mask.shape == (30, 40)
    assert encoded.completion_tokens.shape == encoded.completion_mask.shape == (30, 32)
    assert encoded.prompt_tokens.dtype == encoded.completion_tokens.dtype == np.int32
    assert encoded.prompt_mask.dtype == encoded.completion_mask.dtype == bool
    for row, example in enumerate(ROWS):
        prompt = words.encode(example.question)
        completion = words.encode(f"{example.reasoning}\n#### {example.answer}")
        assert encoded.prompt_tokens[row].tolist() == prompt + [words.pad_id] * (40 - len(prompt))
        assert encoded.prompt_mask[row].tolist() == [True] * len(prompt) + [False] * (40 - len(prompt))
        assert encoded.completion_tokens[row].tolist() == completion + [words.eos_id] * (32 - len(completion))
        assert encoded.completion_mask[row].sum() == len(completion) + 1
        assert encoded.completion_mask[row, : len(completion) + 1].all()


def test_traces_keep_text_tokens_and_offsets(words):
    encoded = encode_examples(ROWS, PLAIN, words, 40, 32)
    for row, trace in enumerate(encoded.traces):
        assert trace.text == PLAIN.completion(ROWS[row].reasoning, ROWS[row].answer)
        assert words.decode(trace.tokens) == trace.text
        assert trace.offsets.shape == (len(trace.tokens), 2)
        start = trace.text.index("####") + 5
        last = [trace.text[a:b] for a, b in trace.offsets if a >= start]
        assert "".join(last) == ROWS[row].answer


def lengths_of(words, template=PLAIN):
    prompts = [len(words.encode(template.prompt(row.question))) for row in ROWS]
    completions = [len(words.encode(template.completion(row.reasoning, row.answer))) for row in ROWS]
    return prompts, completions


def test_a_completion_needs_room_for_its_end_token(words):
    _, completions = lengths_of(words)
    longest = max(completions)
    assert len(encode_examples(ROWS, PLAIN, words, 40, longest + 1)) == 30
    encoded = encode_examples(ROWS, PLAIN, words, 40, longest)
    assert encoded.report["dropped"] == {"completion_too_long": completions.count(longest)}
    assert (encoded.completion_tokens == words.eos_id).any(axis=1).all()


def test_long_rows_follow_the_rule(words):
    prompts, completions = lengths_of(words)
    limit = sorted(prompts)[10]
    with pytest.raises(UserError, match=rf"the prompt of row sft-\d+ has \d+ tokens, but prompt_length is {limit}"):
        encode_examples(ROWS, PLAIN, words, limit, 32)
    fewer = encode_examples(ROWS, PLAIN, words, limit, 32, long_prompts="drop")
    assert fewer.report["dropped"] == {"prompt_too_long": sum(length > limit for length in prompts)}
    assert [example.id for example in fewer.examples] == [
        row.id for row, length in zip(ROWS, prompts, strict=True) if length <= limit
    ]
    refusal = (
        r"the completion of row sft-\d+ has \d+ tokens, but completion_length is 12; (\d+) rows .* up to (\d+); rai"
    )
    with pytest.raises(UserError, match=refusal) as refused:
        encode_examples(ROWS, PLAIN, words, 40, 12, long_completions="error")
    counted = re.search(refusal, str(refused.value))
    assert [int(n) for n in counted.groups()] == [sum(length > 11 for length in completions), max(completions) + 1]
    kept = encode_examples(ROWS, PLAIN, words, 40, 12, long_completions="keep")
    assert len(kept) == 30 and kept.report["completions_cut"] == sum(length > 11 for length in completions)
    assert [len(trace.tokens) for trace in kept.traces] == completions
    assert kept.completion_mask[np.asarray(completions) >= 12].all()


def test_report_is_json_and_counts_every_row(words):
    prompts, completions = lengths_of(words)
    report = encode_examples(ROWS, PLAIN, words, 40, 20).report
    assert json.loads(json.dumps(report)) == report
    assert report["rows"] == 30 == report["kept"] + sum(report["dropped"].values())
    assert report["template_hash"] == PLAIN.hash and report["vocab_size"] == words.vocab_size
    # Lengths are of all rows, so that the report says what a larger limit would keep.
    assert report["prompt_tokens"] == length_statistics(prompts)
    assert report["completion_tokens"]["max"] == max(completions)


def test_length_statistics():
    assert length_statistics(range(1, 101)) == {"mean": 50.5, "p50": 51, "p90": 91, "p99": 100, "max": 100}


def test_nothing_to_encode(words):
    with pytest.raises(UserError, match="there are no rows to encode"):
        encode_examples([], PLAIN, words, 40, 32)
    with pytest.raises(UserError, match=r"no row is left \(30 completion_too_long\): .*completion_length 2; raise"):
        encode_examples(ROWS, PLAIN, words, 40, 2)
    with pytest.raises(UserError, match="long_prompts is 'cut'"):
        encode_examples(ROWS, PLAIN, words, 40, 32, long_prompts="cut")


def test_texts_of_other_data_sets_are_their_rows():
    rows = [Example("1", "Why?", "2", "because 2", "file")]
    assert tokenizer_texts(DataSettings(name="jsonl", path="x"), rows, PLAIN) == ["Why?", "because 2\n#### 2"]
    assert tokenizer_texts(DataSettings(), rows, PLAIN) == tokenizer_texts(DataSettings(), [], PLAIN)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (3, 8), (1, 2)])
def test_each_epoch_holds_every_row_once(count, batch):
    stream = np.concatenate([batch_indices(count, batch, 5, step) for step in range(3 * count)])
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()


def test_batches_are_a_function_of_seed_and_step():
    first = [batch_indices(50, 8, 1, step) for step in range(30)]
    assert all(batch.shape == (8,) and batch.dtype == np.int64 for batch in first)
    for step in (29, 3, 17):
        assert (batch_indices(50, 8, 1, step) == first[step]).all()
    assert any((batch_indices(50, 8, 2, step) != first[step]).any() for step in range(3))
    epochs = np.concatenate(first)[:200].reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_far_steps_cost_nothing():
    assert batch_indices(7473, 64, 0, 10**9).shape == (64,)


@pytest.mark.parametrize("arguments", [(0, 4, 0, 0), (4, 0, 0, 0), (4, 4, 0, -1)])
def test_impossible_batches(arguments):
    with pytest.raises(UserError, match="does not exist"):
        batch_indices(*arguments)
