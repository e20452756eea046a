"""A checkpoint, its tokenizer and the lengths asked for have to agree, or the run says what does not."""

import dataclasses
import types

import pytest

from igpo_jax.data.settings import DataSettings
from igpo_jax.data.tokenizers import TokenizerSettings, build_tokenizer, load_tokenizer
from igpo_jax.errors import UserError
from igpo_jax.training import run
from igpo_jax.training.prepared_data import prepare_data
from igpo_jax.training.run_settings import ModelSettings
from tests.rl.rollout_cases import CONFIG
from tests.training import tiny


def tokenizer(**changes):
    ids = {"mask_id": CONFIG.mask_token_id, "eos_id": CONFIG.eos_token_id, "vocab_size": CONFIG.vocab_size}
    return types.SimpleNamespace(**ids | changes)


def test_a_tokenizer_whose_mask_id_disagrees():
    run._agree(CONFIG, tokenizer(), "models/x")
    with pytest.raises(UserError, match=r"models/x/config.json has mask_token_id \d+, but the tokenizer's is 7"):
        run._agree(CONFIG, tokenizer(mask_id=7), "models/x")


def test_a_tokenizer_whose_ids_the_checkpoint_has_learnt_otherwise(tmp_path):
    """Two vocabularies of one size with the same special ids: nothing but their tokens tells them apart."""
    bpe = TokenizerSettings(kind="bpe", vocab_size=300)
    learnt, other = (build_tokenizer(bpe, [f"{word} {word} {word}s"] * 9) for word in ("cat", "dog"))
    learnt.save(tmp_path)
    known = load_tokenizer(tmp_path)
    settings = tiny.run_settings(model=ModelSettings(checkpoint="models/x"), tokenizer=bpe)
    run._same_ids(known, learnt, settings)
    with pytest.raises(UserError, match=rf"token ids stand for other tokens in models/x.*tokenizer.path to {tmp_path}"):
        run._same_ids(known, other, settings)
    with pytest.raises(UserError, match=r"models/x has no tokenizer files, and ids that tokenizer.kind 'bpe' makes"):
        run._same_ids(None, other, settings)
    own = TokenizerSettings(kind="path", path=str(tmp_path))
    run._same_ids(None, known, dataclasses.replace(settings, tokenizer=own))


def test_rows_longer_than_the_checkpoint_s_context():
    config = dataclasses.replace(CONFIG, max_sequence_length=56)
    settings = tiny.run_settings(model=ModelSettings(checkpoint="models/x"))
    run._check_context(config, settings)  # 32 + 24
    with pytest.raises(
        UserError, match=r"prompts of 33 tokens .* completions of 24 do not fit into the 56 positions of"
    ):
        run._check_context(config, dataclasses.replace(settings, prompt_length=33))
    longer = dataclasses.replace(settings.sft, completion_length=30)
    with pytest.raises(UserError, match="completions of 30"):
        run._check_context(config, dataclasses.replace(settings, sft=longer))


def test_no_test_question_is_left_out(tmp_path):
    """A prompt that does not fit may be dropped from training, never from the test."""
    settings = tiny.run_settings(long_prompts="drop", prompt_length=24)
    lengths = dataclasses.replace(settings.data, sft_lengths=(1, 2), rl_lengths=(1, 2))
    prepared = prepare_data(dataclasses.replace(settings, data=lengths), tmp_path)
    assert prepared.encoded["sft"].report["dropped"]["prompt_too_long"] > 0
    assert len(prepared.encoded["test"]) == 7
    longer = dataclasses.replace(lengths, test_lengths=(1, 2))
    with pytest.raises(UserError, match=r"the prompt of row test-\d+ has \d+ tokens, but prompt_length is 24"):
        prepare_data(dataclasses.replace(settings, data=longer), tmp_path)


def test_a_test_set_has_nothing_to_train_on(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    data = DataSettings(name="math500", path=str(tmp_path))
    with pytest.raises(UserError, match=r"the data set 'math500' has no rows in split 'sft'; it has test \(1 rows\)"):
        prepare_data(tiny.run_settings(data=data), tmp_path / "run")
