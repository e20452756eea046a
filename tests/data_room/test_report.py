"""The data report: counts, lengths, sources of solutions, overlap with test sets, and its three files."""

import json
import os
import subprocess
import sys

import pytest

from igpo_jax import cli, prepare
from igpo_jax.data import DataSettings, Example, fingerprints, open_split, report
from igpo_jax.data.fingerprints import fingerprint, normal_form, overlap, public_homes, public_tests
from igpo_jax.data.pipeline import encode_examples, length_histogram, tokenizer_texts
from igpo_jax.data.templates import get_template
from igpo_jax.data.tokenizers import TokenizerSettings, build_tokenizer
from igpo_jax.errors import UserError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $\\dfrac{1}{2}$?", "what is  \\frac{1}{2}"),
        ("Find $f(x)$,\nwhere $x\\!=\\,2$.", "Find f(x) where x=2"),
        ("It costs \\$5; how much are 3?", "It costs $5, how much are 3"),
        ("Is \\left(0, 3\\right) there?", "is (0,3) there"),
        ("Café − 5", "cafe\u0301 - 5"),
    ],
)
def test_equal_questions(one, other):
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(("one", "other"), [("x + 1", "x - 1"), ("2 < 3", "2 > 3"), ("x^2", "x2"), ("a 1", "a 2")])
def test_different_questions(one, other):
    assert normal_form(one) != normal_form(other)


def test_the_public_test_sets_are_all_there():
    sizes = {name: len(values) for name, values in public_tests().items()}
    maths = {"gsm8k": 1319, "math500": 500, "amc23": 40, "amc22_23": 83}
    assert sizes == {**maths, "countdown": 256, "sudoku": 500, "sudoku:spg": 256}
    assert public_tests()["amc23"] < public_tests()["amc22_23"]


@pytest.fixture
def known(monkeypatch):
    """Two public test sets of our own."""
    tests = {"one": frozenset([fingerprint("What is 2 + 2?")]), "two": frozenset([fingerprint("Why?")])}
    monkeypatch.setattr(fingerprints, "public_tests", lambda: tests)
    fingerprints._homes.cache_clear()
    yield tests
    fingerprints._homes.cache_clear()


def test_overlap(known):
    assert public_homes("what is 2+2") == ("one",) and public_homes("Who?") == ()
    asked = ["What is 2 + 2", "Who?", "When?", "what is  2 + 2?"]
    assert overlap(asked, {"mine": ["who"]}) == {"one": 2, "two": 0, "mine": 1}


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return str(folder)


def row(question, **fields):
    return {"question": question, "answer": "4", "reasoning": "It is 4.", **fields}


@pytest.mark.parametrize(("rule", "kept"), [("keep", 3), ("drop", 2)])
def test_rows_that_ask_a_test_question(tmp_path, known, rule, kept):
    path = write_rows(tmp_path / "d", {"sft": [row("what is 2+2"), row("Who?"), row("When?")], "test": [row("Why?")]})
    settings = DataSettings(name="jsonl", path=path, on_test_overlap=rule)
    rows = open_split(settings, "sft", tmp_path / "cache")
    assert len(rows) == kept and rows.report["in_public_test_sets"] == {"one": 1}
    assert rows.report["dropped"] == ({"in_a_public_test_set": 1} if rule == "drop" else {})
    assert len(open_split(settings, "test", tmp_path / "cache")) == 1, "test questions are what they are"


def test_rows_that_ask_a_test_question_may_be_refused(tmp_path, known):
    path = write_rows(tmp_path / "d", {"sft": [row("What is 2 + 2?")], "test": [row("Why?")]})
    with pytest.raises(UserError, match=r"sft.jsonl line 1 \(sft\) asks a question of the test set one: 'What is 2"):
        open_split(DataSettings(name="jsonl", path=path, on_test_overlap="error"), "sft", tmp_path / "cache")


def test_a_shared_question_may_cost_the_training_row_alone(tmp_path):
    path = write_rows(tmp_path / "d", {"sft": [row("A?"), row("B?")], "test": [row("a?")]})
    settings = DataSettings(name="jsonl", path=path, on_shared_question="drop")
    assert [r.question for r in open_split(settings, "sft", tmp_path / "cache")] == ["B?"]
    assert [r.question for r in open_split(settings, "test", tmp_path / "cache")] == ["a?"]


def test_duplicate_ids(tmp_path):
    path = write_rows(tmp_path / "d", {"sft": [row("A?", id="x"), row("B?"), row("C?", id="x")]})
    with pytest.raises(UserError, match=r"sft.jsonl line 3: the id 'x' is already that of .*sft.jsonl line 1"):
        open_split(DataSettings(name="jsonl", path=path), "sft", tmp_path / "cache")


def test_ids_golds_and_sources_come_through(tmp_path):
    fields = {"id": "x-1", "gold": "[[1, 3], 4]", "trace_source": "rewritten:some-model"}
    path = write_rows(tmp_path / "d", {"sft": [row("A?", **fields)], "rl": [{"question": "B?", "answer": "5"}]})
    found = open_split(DataSettings(name="jsonl", path=path), "sft", tmp_path / "cache")[0]
    assert found == Example("x-1", "A?", "4", "It is 4.", "rewritten:some-model", "[[1, 3], 4]")
    # RL may do without a solution: such a question is asked and judged, and gets no hints.
    bare = open_split(DataSettings(name="jsonl", path=path), "rl", tmp_path / "cache")[0]
    assert (bare.reasoning, bare.trace_source, bare.gold) == ("", "none", "5")


def test_length_histogram():
    assert length_histogram([0, 7, 8, 20]) == {"bin": 8, "counts": [2, 1, 1]}
    wide = length_histogram([1, 1000])
    assert wide["bin"] == 64 and sum(wide["counts"]) == 2 and len(wide["counts"]) <= 24


@pytest.fixture
def reports(tmp_path):
    template = get_template("plain")
    rows = [Example(str(n), f"Is it {n}?", str(n), f"It is {n}. " * (1 + n % 9), "human:x") for n in range(30)]
    rows[0] = Example("0", "Is it 0?", "0", "It is 0.", "teacher:y")
    tokenizer = build_tokenizer(
        TokenizerSettings(kind="characters"), tokenizer_texts(DataSettings(name="jsonl"), rows, template)
    )
    encoded = {
        "sft": encode_examples(rows, template, tokenizer, 12, 60),
        "test": encode_examples(rows[3:5], template, tokenizer, 12, 60, long_completions="keep"),
    }
    built = {"data_set": "jsonl", "read": {"all": 32}, "dropped": {"no_answer": 2}}
    return report.split_reports(encoded, dict.fromkeys(encoded, built))


def test_split_reports(reports):
    sft = reports["sft"]
    assert json.loads(json.dumps(reports)) == reports
    assert sum(sft["trace_sources"].values()) == sft["kept"] and sft["trace_sources"]["teacher:y"] == 1
    assert sft["kept"] + sum(sft["dropped"].values()) == sft["rows"] == sum(sft["completion_histogram"]["counts"])
    assert set(sft["test_overlap"]) == {*public_tests(), "test split"} and sft["test_overlap"]["test split"] == 2
    assert "test_overlap" not in reports["test"]


def test_what_a_run_prints(reports):
    lines = report.summary(reports)
    assert lines[0].startswith(f"sft: {reports['sft']['kept']} of 30 rows are used (")
    assert "sft: 2 of test split are test questions as well" in lines[1]
    reports["sft"]["built"] |= {"unique_questions": 12793, "paper_counts": 12794}
    said = report.summary(reports)[-1]
    assert said == "MetaMathQA AnsAug: 12793 unique questions, the paper counts 12794: 1 fewer"


def test_files_of_the_report(tmp_path, reports):
    paths = report.write_reports(tmp_path / "out", reports)
    assert [path.name for path in paths] == ["data_report.json", "data_report.txt", "data_lengths.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[0].read_text()) == reports
    text = paths[1].read_text()
    assert "solutions by source: " in text and "1 teacher:y" in text and "dropped while building: 2 no answer" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


CONFIG = """
from tests.training import tiny
def get_config():
    return tiny.run_settings()
"""


def test_the_command(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        cli.run(prepare.main, ["prepare", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "sft: 64 of 64 rows of chain" in out and "solutions by source: 64 program:chain" in out
    assert "written to" in out and "data_report.json, data_report.txt, data_lengths.png" in out
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["rl"]["kept"] == 16
    assert not (tmp_path / "run" / "config.json").exists(), "training may start there with any settings"


def test_nothing_is_left_in_the_temporary_folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    program = (
        "from igpo_jax.data import DataSettings, open_split\n"
        f"open_split(DataSettings(sft_rows=20, rl_rows=9, test_rows=5), 'sft', {str(tmp_path / 'cache')!r})"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100, env=environment)
    assert list((tmp_path / "tmp").iterdir()) == []
