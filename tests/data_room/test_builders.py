import dataclasses
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import pytest

from igpo_jax.data import DataSettings, chain, open_split
from igpo_jax.data.builders import gsm8k
from igpo_jax.data.files import file_sha256
from igpo_jax.errors import UserError

CHAIN = DataSettings(sft_rows=40, rl_rows=20, test_rows=12)
ROOT = pathlib.Path(__file__).parents[2]


def gsm8k_row(row):
    """Our own problem in GSM8K's form."""
    return {
        "question": f"Zoë packs {row + 2} crates with 1,000 figs each. How many figs is that?",
        "answer": f"She packs {row + 2}*1000=<<{row + 2}*1000={row + 2}000>>{row + 2},000 figs.\n#### {row + 2},000",
    }


@pytest.fixture
def gsm8k_folder(tmp_path):
    folder = tmp_path / "gsm"
    folder.mkdir()
    for name, rows in (("train", range(40)), ("test", range(40, 50))):
        lines = [json.dumps(gsm8k_row(row), ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_chain_splits(tmp_path):
    splits = {split: open_split(CHAIN, split, tmp_path / "cache") for split in ("sft", "rl", "test", "train")}
    assert {split: len(rows) for split, rows in splits.items()} == {"sft": 40, "rl": 20, "test": 12, "train": 60}
    assert [example.id for example in splits["sft"]] == [f"sft-{row}" for row in range(40)]
    assert list(splits["train"]) == [*splits["sft"], *splits["rl"]]
    assert splits["train"][-1] == splits["rl"][19] and splits["train"][38:42] == list(splits["train"])[38:42]
    for index in (60, -61):
        with pytest.raises(IndexError):
            splits["train"][index]
    assert splits["sft"].report == {
        "data_set": "chain",
        "sha256": {"generator": file_sha256(chain.__file__)},
        "rows": {"sft": 40, "rl": 20, "test": 12},
        "seed": 0,
    }


def test_a_built_set_is_read_and_a_changed_dial_builds_anew(tmp_path):
    cache = tmp_path / "cache"
    open_split(CHAIN, "sft", cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.array_record*")}
    assert len(before) == 3
    open_split(CHAIN, "rl", cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.array_record*")} == before
    harder = open_split(dataclasses.replace(CHAIN, rl_lengths=(8,)), "rl", cache)
    assert all(chain.chain_length(example) == 8 for example in harder)
    assert len(list(cache.rglob("*.array_record*"))) == 6


def test_gsm8k_from_files(tmp_path, gsm8k_folder):
    settings = DataSettings(name="gsm8k", path=str(gsm8k_folder))
    splits = {split: open_split(settings, split, tmp_path / "cache") for split in ("sft", "rl", "test")}
    assert len(splits["sft"]) + len(splits["rl"]) == 40 and len(splits["sft"]) > 5 and len(splits["rl"]) > 5
    questions = [{example.question for example in rows} for rows in splits.values()]
    assert len(set.union(*questions)) == 50
    first = splits["test"][0]
    assert first.question == "Zoë packs 42 crates with 1,000 figs each. How many figs is that?"
    assert (first.answer, first.reasoning) == ("42000", "She packs 42*1000=42,000 figs.")
    assert splits["sft"].report["sha256"]["test"] == file_sha256(gsm8k_folder / "test.jsonl")
    assert splits["sft"].report["read"] == {"train": 40, "test": 10}


def test_a_changed_file_builds_anew_and_a_moved_one_does_not(tmp_path, gsm8k_folder):
    cache = tmp_path / "cache"
    settings = DataSettings(name="gsm8k", path=str(gsm8k_folder))
    assert len(open_split(settings, "test", cache)) == 10
    moved = gsm8k_folder.rename(tmp_path / "elsewhere")
    settings = dataclasses.replace(settings, path=str(moved))
    assert len(open_split(settings, "test", cache)) == 10
    assert len(list((cache / "gsm8k").iterdir())) == 1
    with (moved / "test.jsonl").open("a") as handle:
        handle.write(json.dumps(gsm8k_row(60)) + "\n")
    assert len(open_split(settings, "test", cache)) == 11


def test_a_missing_file_is_named(tmp_path, gsm8k_folder):
    (gsm8k_folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"gsm/test.jsonl does not exist; data.path must be a folder"):
        open_split(DataSettings(name="gsm8k", path=str(gsm8k_folder)), "test", tmp_path / "cache")


def test_bad_rows_keep_their_message_inside_tfds(tmp_path, gsm8k_folder):
    with (gsm8k_folder / "train.jsonl").open("a") as handle:
        handle.write('{"question": \n')
    settings = DataSettings(name="gsm8k", path=str(gsm8k_folder))
    for _ in range(2):  # a failed build leaves nothing behind that a second try could mistake for data
        with pytest.raises(UserError, match=r"train.jsonl line 41 is not JSON"):
            open_split(settings, "sft", tmp_path / "cache")


ROWS = [{"question": f"Is it {row}?", "answer": f"{row}", "reasoning": f"It is {row}."} for row in range(30)]


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_one_jsonl_file(tmp_path):
    write(tmp_path / "mine.jsonl", ROWS)
    settings = DataSettings(name="jsonl", path=str(tmp_path / "mine.jsonl"), test_fraction=0.3)
    sizes = {split: len(open_split(settings, split, tmp_path / "cache")) for split in ("sft", "rl", "test")}
    assert sum(sizes.values()) == 30 and min(sizes.values()) > 2


def test_a_folder_of_jsonl_files(tmp_path):
    write(tmp_path / "mine" / "sft.jsonl", ROWS[:20])
    write(tmp_path / "mine" / "test.jsonl", [{"question": "Why?", "answer": "x"}])
    settings = DataSettings(name="jsonl", path=str(tmp_path / "mine"))
    assert len(open_split(settings, "sft", tmp_path / "cache")) == 20
    assert open_split(settings, "test", tmp_path / "cache")[0].reasoning == ""
    with pytest.raises(UserError, match=r"no rows in split 'rl'; it has sft \(20 rows\), test \(1 rows\)"):
        open_split(settings, "rl", tmp_path / "cache")


def test_jsonl_places(tmp_path):
    def opened(path):
        return open_split(DataSettings(name="jsonl", path=path), "sft", tmp_path / "cache")

    with pytest.raises(UserError, match=r"data.path is empty, but data.name is 'jsonl'"):
        opened("")
    with pytest.raises(UserError, match=r"none.jsonl does not exist; data.path must be a .jsonl file or a folder"):
        opened(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds none of sft.jsonl, rl.jsonl, train.jsonl and test.jsonl"):
        opened(str(tmp_path / "empty"))
    for name in ("train", "rl"):
        write(tmp_path / "both" / f"{name}.jsonl", ROWS)
    with pytest.raises(UserError, match=r"both holds train.jsonl beside sft.jsonl or rl.jsonl"):
        opened(str(tmp_path / "both"))


def test_building_is_silent_and_loads_neither_jax_nor_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from igpo_jax.data import DataSettings, open_split\n"
        "from igpo_jax.data import examples, pipeline, sources, templates, tokenizer_kinds, tokenizers\n"
        f"rows = open_split(DataSettings(sft_rows=20, rl_rows=9, test_rows=5), 'sft', {str(tmp_path)!r})\n"
        "template = templates.get_template('plain')\n"
        "texts = pipeline.tokenizer_texts(DataSettings(), rows, template)\n"
        "words = tokenizers.build_tokenizer(tokenizers.TokenizerSettings(), texts)\n"
        "pipeline.encode_examples(rows, template, words, 100, 100)\n"
        "assert len(rows) == 20 and 'jax' not in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_runs_started_at_once_build_one_set(tmp_path):
    program = (
        "from igpo_jax.data import DataSettings, open_split\n"
        f"print(len(open_split(DataSettings(sft_rows=3000, rl_rows=9, test_rows=5), 'sft', {str(tmp_path)!r})))"
    )
    command = [sys.executable, "-c", program]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=100)[0].strip() for run in runs] == ["3000"] * 3
    assert len(list((tmp_path / "chain").iterdir())) == 1


@pytest.fixture
def served(gsm8k_folder, monkeypatch):
    """Serves the folder on this machine in place of GSM8K's release."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def handler(*args):
        return Quiet(*args, directory=str(gsm8k_folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(gsm8k, "URL", f"http://127.0.0.1:{server.server_port}/")
    yield gsm8k_folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_gsm8k_download(tmp_path, served, monkeypatch):
    released = {name: file_sha256(served / f"{name}.jsonl") for name in ("train", "test")}
    monkeypatch.setattr(gsm8k, "RELEASED", {**released, "test": "0" * 64})
    settings = DataSettings(name="gsm8k")
    with pytest.raises(UserError, match=r"test.jsonl arrived with sha256 [0-9a-f]{64}, expected 0{64}"):
        open_split(settings, "test", tmp_path / "cache")
    monkeypatch.setattr(gsm8k, "RELEASED", released)
    rows = open_split(settings, "test", tmp_path / "cache")
    assert len(rows) == 10 and rows.report["sha256"] == released


def test_gsm8k_without_network(tmp_path, monkeypatch):
    # Nothing listens on port 9 of this machine.
    monkeypatch.setattr(gsm8k, "URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=r"http.*train.jsonl could not be downloaded .*set data.path to a folder with"):
        open_split(DataSettings(name="gsm8k"), "test", tmp_path / "cache")


def test_released_checksums_are_the_documented_ones():
    assert gsm8k.RELEASED["train"].startswith("17f347dc51477c50") and gsm8k.RELEASED["test"].startswith(
        "3730d312f6e34405"
    )
    assert gsm8k.URL.endswith(
        "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
    )
