import json
import pathlib

import pytest

from igpo_jax.data.examples import answer_in_trace, numbers_in
from igpo_jax.data.files import read_json_lines
from igpo_jax.data.parsers import parse_gsm8k, parse_row, plain_answer
from igpo_jax.data.settings import DataSettings
from igpo_jax.data.sources import read_splits
from igpo_jax.errors import UserError


@pytest.mark.parametrize(
    ("reasoning", "answer", "stated"),
    [
        ("so 3 + 4 = 7 apples", "7", True),
        ("so 3 + 4 = 7 apples", "17", False),
        ("a total of $1,080.00", "1080", True),
        ("it costs 0.50", "0.5", True),
        ("70 is not 7", "7.0", True),
        ("a loss of 12", "-12", True),
        ("10-3=7", "3", True),
        ("ends at .25", "0.25", True),
        (r"so $x = \frac{1}{2}$", r"\frac{1}{2}", True),
        (r"so $x = \frac{1}{3}$", r"\frac{1}{2}", False),
        ("", "7", False),
    ],
)
def test_answer_in_trace(reasoning, answer, stated):
    assert answer_in_trace(reasoning, answer) is stated


def test_numbers_in():
    assert [str(number) for number in numbers_in("1,234.50 and -7, or .5; 3.")] == ["1234.50", "-7", "0.5", "3"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [(" 1,080 ", "1080"), ("-12,345.5", "-12345.5"), ("1,2", "1,2"), ("(1,080)", "(1,080)"), ("x", "x")],
)
def test_plain_answer(text, answer):
    assert plain_answer(text) == answer


def test_gsm8k_row():
    row = {
        "question": " How many? ",
        "answer": "He has 4*5=<<4*5=20>>20 pens.\nSo $<<20*100=2000>>2,000.\n#### -2,000",
    }
    parsed = parse_gsm8k(row, "here")
    assert parsed.question == "How many?"
    assert parsed.reasoning == "He has 4*5=20 pens.\nSo $2,000."
    assert parsed.answer == "-2000"
    assert parsed.trace_source == "human:gsm8k"


@pytest.mark.parametrize("answer", ["20", "so 20\n####", "so 20\n####   "])
def test_gsm8k_row_without_answer_line(answer):
    with pytest.raises(UserError, match=r"f\.jsonl line 3: the answer does not end in a line '#### <number>'"):
        parse_gsm8k({"question": "q", "answer": answer}, "f.jsonl line 3")


def test_user_row():
    row = {"question": "q", "answer": 12, "reasoning": "r", "trace_source": "rewritten", "extra": []}
    assert parse_row(row, "here", need_reasoning=True) == parse_row(row, "there", need_reasoning=False)
    parsed = parse_row({"question": "q", "answer": 0.5}, "here", need_reasoning=False)
    assert (parsed.answer, parsed.reasoning, parsed.trace_source) == ("0.5", "", "none")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "1"}, "here: field 'reasoning' is missing or empty.*the row has answer, question"),
        ({"question": " ", "answer": "1", "reasoning": "1"}, "field 'question' is missing or empty"),
        ({"question": "q", "answer": None, "reasoning": "1"}, "field 'answer' is missing or empty"),
        ({"question": "q", "answer": True, "reasoning": "1"}, "field 'answer' is a bool"),
        (
            {"question": "q", "answer": float("nan"), "reasoning": "nan"},
            "field 'answer' is nan, expected text or a num",
        ),
        ({"question": ["q"], "answer": "1", "reasoning": "1"}, "field 'question' is a list"),
        ({}, "field 'question' is missing or empty, expected text; the row has no field at all"),
    ],
)
def test_bad_user_row(row, message):
    with pytest.raises(UserError, match=message):
        parse_row(row, "here", need_reasoning=True)


def write_lines(path: pathlib.Path, rows) -> pathlib.Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    # A byte order mark, Windows line ends, a blank line, and a line separator inside the text.
    path.write_bytes('\ufeff{"question": "one\u2028two"}\r\n\r\n{"question": "é"}\n'.encode())
    assert read_json_lines(path) == [
        (f"{path} line 1", {"question": "one\u2028two"}),
        (f"{path} line 3", {"question": "é"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "a.jsonl line 2 is not JSON"),
        (
            rb'{"a": "\ud83d\ude00"}%c{"a": "\ud83d"}' % 10,
            r"a.jsonl line 2 is not JSON \(an escape .* half a character\)",
        ),
        (b"[1, 2]\n", "a.jsonl line 1 holds a list, expected an object"),
        (b"", "a.jsonl holds no rows"),
        (b"\n \n", "a.jsonl holds no rows"),
        (b'{"a": "\xff"}\n', r"a.jsonl is not UTF-8 text \(byte 7\)"),
    ],
)
def test_bad_file(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json_lines(path)


def rows_of(count, prefix="q"):
    return [{"question": f"{prefix} {row}?", "answer": str(row), "reasoning": f"it is {row}"} for row in range(count)]


def parser(row, place):
    return parse_row(row, place, need_reasoning=True)


def read(files, **fields):
    return read_splits(files, dict.fromkeys(files, parser), DataSettings(name="jsonl", **fields))


def test_one_file_is_divided_by_its_questions(tmp_path):
    rows = rows_of(600)
    splits, report = read({"all": write_lines(tmp_path / "a.jsonl", rows)}, sft_fraction=0.25, test_fraction=0.2)
    questions = {split: {example.question for example in examples} for split, examples in splits.items()}
    assert sum(len(part) for part in questions.values()) == 600 == len(set.union(*questions.values()))
    assert 80 < len(questions["test"]) < 160 and 80 < len(questions["sft"]) < 160
    assert report["read"] == {"all": 600}
    turned, _ = read({"all": write_lines(tmp_path / "b.jsonl", rows[::-1])}, sft_fraction=0.25, test_fraction=0.2)
    assert {split: {example.question for example in part} for split, part in turned.items()} == questions
    other, _ = read({"all": tmp_path / "a.jsonl"}, sft_fraction=0.25, test_fraction=0.2, seed=1)
    assert {example.question for example in other["test"]} != questions["test"]


def test_the_same_question_stays_in_one_split(tmp_path):
    rows = [row for base in rows_of(50) for row in (base, {**base, "question": "  " + base["question"].upper()})]
    splits, report = read({"all": write_lines(tmp_path / "a.jsonl", rows)})
    assert all(len(part) % 2 == 0 for part in splits.values())
    assert report["shared_questions"] == 0


def test_a_question_in_two_files(tmp_path):
    files = {
        "sft": write_lines(tmp_path / "sft.jsonl", rows_of(3)),
        "test": write_lines(tmp_path / "test.jsonl", rows_of(5)[2:]),
    }
    with pytest.raises(
        UserError, match=r"test.jsonl line 1 \(test\) repeats the question of .*sft.jsonl line 3 \(sft\)"
    ):
        read(files)
    splits, report = read(files, on_shared_question="keep")
    assert report["shared_questions"] == 1
    assert [len(splits[split]) for split in ("sft", "rl", "test")] == [3, 0, 3]


def test_traces_without_their_answer(tmp_path):
    bad = {"question": "b?", "answer": "77", "reasoning": "it is 7"}
    files = {
        "sft": write_lines(tmp_path / "sft.jsonl", [*rows_of(2, "s"), bad]),
        "test": write_lines(tmp_path / "test.jsonl", [{**bad, "question": "t?"}]),
    }
    splits, report = read(files)
    # A test question is never dropped: its answer decides, not its trace.
    assert [len(splits[split]) for split in ("sft", "test")] == [2, 1]
    assert report["answer_not_in_trace"] == {"sft": 1, "test": 1}
    assert len(read(files, on_missing_answer="keep")[0]["sft"]) == 3
    with pytest.raises(UserError, match=r"sft\.jsonl line 3: the solution never states its answer '77'"):
        read(files, on_missing_answer="error")


def test_nothing_left(tmp_path):
    path = write_lines(tmp_path / "sft.jsonl", [{"question": "q", "answer": "1", "reasoning": "2"}])
    with pytest.raises(UserError, match=r"no row of .*sft\.jsonl is left"):
        read({"sft": path})


def test_ids_are_unique(tmp_path):
    files = {role: write_lines(tmp_path / f"{role}.jsonl", rows_of(4, role)) for role in ("train", "test")}
    splits, _ = read(files)
    ids = [example.id for part in splits.values() for example in part]
    assert len(set(ids)) == len(ids) == 8
