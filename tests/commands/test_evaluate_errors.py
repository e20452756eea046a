"""What evaluate and compare refuse: one sentence each, and no output folder is left behind."""

import json
import shutil

import pytest

SMALL = ("--template", "plain", "--length", 16, "--steps", 8, "--block-length", 8, "--cpu-devices", 8, "--batch", 8)


@pytest.fixture
def asked(refused, chat_dir, tmp_path):
    """Runs evaluate with some flags changed; returns its complaint, and makes sure that nothing was written."""

    def call(rows=({"question": "1 + 1?", "answer": "2"},), *more, **changed):
        path = tmp_path / "mine.jsonl"
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        flags = {"checkpoint": chat_dir, "suite": path, "protocol": "d1", "output": tmp_path / "out"} | changed
        given = [part for name, value in flags.items() for part in (f"--{name}", value)]
        line = refused("evaluate", *given, *SMALL, *more)
        assert not (tmp_path / "out").exists()
        return line

    return call


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"suite": "gsm9k"}, ["'gsm9k'", "not a suite", "did you mean 'gsm8k'"]),
        ({"suite": ","}, ["--suite names no suite"]),
        ({"suite": "gsm8k,amc,gsm8k"}, ["'gsm8k' twice"]),
        ({"suite": "none.jsonl"}, ["none.jsonl", "does not exist"]),
        ({"suite": "own"}, ["no run directory"]),
        ({"protocol": "papre"}, ["--protocol is 'papre'", "did you mean 'paper'"]),
        ({"protocol": "run"}, ["no run directory"]),
        ({"checkpoint": "nowhere"}, ["--checkpoint nowhere", "not a folder"]),
        ({"suite": "gsm8k", "data": "gsm8k"}, ["--data is 'gsm8k'", "NAME=PATH"]),
        ({"suite": "gsm8k", "data": "math500=x"}, ["--data names 'math500'"]),
        ({"suite": "gsm8k", "data": "gsm8k=missing/test.jsonl"}, ["missing/test.jsonl", "does not exist"]),
        ({"suite": "gsm8k", "data": "gsm8k=."}, ["train.jsonl does not exist", "--data gsm8k=PATH must be a folder"]),
        ({"limit": "-1"}, ["--limit is -1"]),
        ({"samples": "4"}, ["--samples is 4 at temperature 0", "raise --temperature"]),
        ({"samples": "0"}, ["--samples is 0"]),
        ({"temperature": "-0.5"}, ["--temperature"]),
        ({"fsdp": "3"}, ["mesh", "8"]),
    ],
)
def test_flags(asked, changed, words):
    line = asked(**changed)
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--batch", 12), ["--batch is 12", "8 devices"]),
        (("--template", "papper"), ["'papper'", "did you mean 'paper'"]),
        (("--length", 20), ["--length", "--block-length"]),
        (("--length", 200, "--block-length", 200, "--steps", 200), ["200 tokens", "192", "--length"]),
        (("--lenght", 20), ["--lenght", "did you mean '--length'"]),
    ],
)
def test_more_flags(asked, more, words):
    line = asked(({"question": "1 + 1?", "answer": "2"},), *more)
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", ["mine.jsonl", "no rows"]),
        ('{"question": "1?", "answer": "1"}\n{"question"\n', ["mine.jsonl line 2", "not JSON"]),
        ([{"question": "1?"}], ["mine.jsonl line 1", "'answer'"]),
        ([{"question": "a" * 190, "answer": "1"}], ["test-0", "tokens", "192"]),
        ([{"id": "x", "question": "1?", "answer": "1"}, {"id": "x", "question": "2?", "answer": "2"}], ["'x'"]),
        ([{"question": "what is <|eot_id|>?", "answer": "1"}], ["test-0", "<|eot_id|>"]),
    ],
)
def test_questions(asked, rows, words):
    line = asked(rows)
    assert not [word for word in words if word not in line], line


def test_a_checkpoint_without_a_tokenizer(asked, chat_dir, tmp_path):
    bare = shutil.copytree(chat_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    line = asked(checkpoint=bare)
    assert str(bare) in line and "no tokenizer files" in line


def test_a_tokenizer_whose_mask_is_not_the_models(asked, chat_dir, tmp_path):
    other = shutil.copytree(chat_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["mask_token_id"] -= 1
    (other / "config.json").write_text(json.dumps(config))
    line = asked(checkpoint=other)
    assert "mask_token_id" in line and str(config["mask_token_id"]) in line


def test_an_output_that_is_a_file(refused, chat_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    flags = ["--checkpoint", chat_dir, "--suite", "gsm8k", "--protocol", "d1", *SMALL]
    line = refused("evaluate", *flags, "--output", tmp_path / "file" / "out")
    assert "is a file" in line and (tmp_path / "file").read_text() == "mine"


def test_an_output_with_other_files(refused, chat_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    flags = ["--checkpoint", chat_dir, "--suite", "gsm8k", "--protocol", "d1", *SMALL]
    line = refused("evaluate", *flags, "--output", tmp_path)
    assert "notes.txt" in line and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_compare_needs_reports(refused, tmp_path):
    assert "report.json cannot be read" in refused("compare", tmp_path, tmp_path)
    (tmp_path / "report.json").write_text('{"scores": 1}')
    assert "no report" in refused("compare", tmp_path, tmp_path)
    (tmp_path / "report.json").write_text('{"scores": ')
    assert "not valid JSON" in refused("compare", tmp_path, tmp_path)
