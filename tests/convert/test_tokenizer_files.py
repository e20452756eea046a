import hashlib
import json
import shutil

import pytest

from convert import exporter, importer, tokenizer_files
from convert.source import find_tokenizer, load_model
from igpo_jax.errors import UserError
from tests.convert.conftest import write_tokenizer


def test_instruct_ids(published_shape, tmp_path, run):
    write_tokenizer(published_shape)
    done = run("import", "--source", published_shape, "--output", tmp_path / "model")
    assert done.code == 0
    config, _, tokenizer = load_model(tmp_path / "model")
    assert tokenizer.fast.mask_token_id is None  # as in LLaDA's own files
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (126336, 126081, 126081)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (126336, 126081, 126081)
    assert tokenizer.vocab_size == 126349 and tokenizer.has_chat
    ids = tokenizer.encode_prompt("1 + 1?")
    assert ids[:2] == [126080, 126346] and ids.count(126348) == 1 and ids[-3] == 126347
    assert tokenizer.decode([*tokenizer.encode("two"), 126336]) == "two"
    assert "chat template" in done.out and "no chat template" not in done.out


def test_base_has_no_header_ids(published_shape, tmp_path, run):
    write_tokenizer(published_shape, chat=False)
    done = run("import", "--source", published_shape, "--output", tmp_path / "model")
    assert done.code == 0 and "no chat template whose tokens it has" in done.out
    tokenizer = find_tokenizer(tmp_path / "model")
    assert not tokenizer.has_chat and tokenizer.vocab_size == 126337
    assert tokenizer.encode_prompt("hi") == tokenizer.encode("hi")


@pytest.mark.parametrize(
    ("moved", "sentence"),
    [
        ({"mdm_mask": 126335}, "has mask_token_id 126335, but config.json says 126336"),
        ({"endoftext": 126079}, "has eos_token_id 126079, but config.json says 126081"),
    ],
)
def test_ids_that_disagree_with_the_config(published_shape, tmp_path, refused, moved, sentence):
    write_tokenizer(published_shape, **moved)
    line = refused("import", "--source", published_shape, "--output", tmp_path / "model")
    assert sentence in line and "use the tokenizer files that belong to the checkpoint" in line
    assert not (tmp_path / "model").exists()


def test_padding_that_disagrees_with_the_config(published_shape, tmp_path, refused):
    write_tokenizer(published_shape)
    path = published_shape / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "[CLS]"}))
    line = refused("import", "--source", published_shape, "--output", tmp_path / "model")
    assert "has pad_token_id 126082, but config.json says 126081" in line


def test_more_ids_than_the_embedding_has_rows(published_shape, tmp_path, refused):
    write_tokenizer(published_shape, eot_id=126464)
    line = refused("import", "--source", published_shape, "--output", tmp_path / "model")
    assert "has ids up to 126464, but the embedding of config.json has 126464 rows" in line


def test_a_tokenizer_without_mask(published_shape, tmp_path, refused):
    write_tokenizer(published_shape)
    path = published_shape / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mdm_mask|>", "<|another|>"))
    line = refused("import", "--source", published_shape, "--output", tmp_path / "model")
    assert "has no mask token" in line


def test_a_damaged_tokenizer(published_shape, tmp_path, refused):
    write_tokenizer(published_shape)
    (published_shape / "tokenizer.json").write_text("{")
    line = refused("import", "--source", published_shape, "--output", tmp_path / "model")
    assert "does not hold a readable fast tokenizer" in line


def test_files_go_through_unchanged(published_shape, tmp_path, run):
    write_tokenizer(published_shape)
    (published_shape / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (published_shape / "modeling_llada.py").write_text("raise SystemExit('this must not run')")
    run("import", "--source", published_shape, "--output", tmp_path / "model")
    exporter.export_model(tmp_path / "model", tmp_path / "back")
    before = {path.name: path.read_bytes() for path in tokenizer_files.present(published_shape)}
    after = {path.name: path.read_bytes() for path in tokenizer_files.present(tmp_path / "back")}
    assert before == after and len(after) >= 3
    assert not list(tmp_path.glob("model/**/*.py")) and not list(tmp_path.glob("back/*.py"))


def test_settings_without_a_vocabulary_are_no_tokenizer(published_shape, tmp_path, run):
    write_tokenizer(published_shape)
    (published_shape / "tokenizer.json").unlink()
    done = run("import", "--source", published_shape, "--output", tmp_path / "model")
    assert done.code == 0 and "notice: the source has no tokenizer files" in done.out
    assert load_model(tmp_path / "model")[2] is None


def test_the_published_vocabularies_are_recognised(published_shape, monkeypatch, run, tmp_path):
    write_tokenizer(published_shape)
    line = "not one of the published files of LLaDA-8B-Base and LLaDA-8B-Instruct"
    assert line in run("import", "--source", published_shape, "--output", tmp_path / "one").out
    digest = hashlib.sha256((published_shape / "tokenizer.json").read_bytes()).hexdigest()
    monkeypatch.setitem(tokenizer_files.PUBLISHED, digest, "LLaDA-8B-Instruct")
    done = run("import", "--source", published_shape, "--output", tmp_path / "two")
    assert "the published file of LLaDA-8B-Instruct" in done.out and line not in done.out
    assert "the published file of LLaDA-8B-Instruct" in run("inspect", tmp_path / "two").out


def test_inspect_says_where_a_tokenizer_does_not_fit(published_shape, run):
    write_tokenizer(published_shape, mdm_mask=126335)
    done = run("inspect", published_shape)
    assert done.code == 0 and "does not fit:" in done.out and "mask_token_id 126335" in done.out


def test_a_tokenizer_beside_the_weights_or_in_its_own_folder(published_shape, tmp_path):
    write_tokenizer(published_shape)
    assert find_tokenizer(published_shape).vocab_size == 126349
    importer.import_checkpoint(published_shape, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model" / "tokenizer").iterdir())[-1] == "tokenizer_config.json"
    assert find_tokenizer(tmp_path / "model").vocab_size == 126349
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    assert find_tokenizer(tmp_path / "model") is None


def test_a_tokenizer_that_was_exchanged_later_is_refused(published_shape, tmp_path):
    write_tokenizer(published_shape)
    importer.import_checkpoint(published_shape, tmp_path / "model")
    write_tokenizer(tmp_path / "model" / "tokenizer", mdm_mask=126335)
    for reader in (find_tokenizer, load_model):
        with pytest.raises(UserError, match=r"has mask_token_id 126335, but config.json says 126336"):
            reader(tmp_path / "model")
