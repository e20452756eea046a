"""The builders of the public data sets, on rows of our own in the form that each source has."""

import csv
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from igpo_jax.data import DataSettings, open_split
from igpo_jax.data.builders import BUILDERS, maths, metamath, openr1, puzzles
from igpo_jax.data.parsers import last_box, parse_amc, parse_math, parse_metamath, parse_openr1
from igpo_jax.data.settings import DATASETS, TEST_ONLY
from igpo_jax.errors import UserError
from igpo_jax.rewards.puzzles import judge_countdown, judge_sudoku


def write_lines(path: pathlib.Path, rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: pathlib.Path, rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def opened(tmp_path, name, path, split, **dials):
    return open_split(DataSettings(name=name, path=str(path), **dials), split, tmp_path / "cache")


def test_every_name_has_its_builder():
    assert tuple(BUILDERS) == tuple(name for name in BUILDERS if name in DATASETS) and set(BUILDERS) == set(DATASETS)


# --- MATH-500, AMC, MATH ---

PROBLEM = {
    "problem": "What is $\\frac12 + \\frac12$?",
    "solution": "The sum is $\\boxed{1}$.",
    "answer": "1",
    "unique_id": "test/algebra/1.json",
}


@pytest.mark.parametrize("given", ["", "test.jsonl"])
def test_math500_by_folder_or_file(tmp_path, given):
    write_lines(tmp_path / "math" / "test.jsonl", [PROBLEM, {**PROBLEM, "unique_id": "test/algebra/2.json"}])
    rows = opened(tmp_path, "math500", tmp_path / "math" / given, "test")
    assert [row.id for row in rows] == ["test/algebra/1.json", "test/algebra/2.json"]
    assert (rows[0].answer, rows[0].gold, rows[0].trace_source) == ("1", "1", "human:math")
    assert rows.report["published_questions"] == 500
    with pytest.raises(UserError, match=r"'math500' has no rows in split 'sft'; it has test \(2 rows\)"):
        opened(tmp_path, "math500", tmp_path / "math" / given, "sft")


def test_two_rows_of_one_id_are_named(tmp_path):
    write_lines(tmp_path / "math" / "test.jsonl", [PROBLEM, PROBLEM])
    with pytest.raises(UserError, match=r"test.jsonl line 2: the id 'test/algebra/1.json' is already that of .*line 1"):
        opened(tmp_path, "math500", tmp_path / "math", "test")


def test_both_editions_of_amc(tmp_path):
    rows = [{"problem": f"What is {n} + 0?", "answer": float(n), "url": "x"} for n in range(3)]
    write_lines(tmp_path / "forty" / "test.jsonl", rows)
    (tmp_path / "eighty").mkdir()
    (tmp_path / "eighty" / "amc.json").write_text(json.dumps(rows[:2]))
    assert [row.answer for row in opened(tmp_path, "amc23", tmp_path / "forty", "test")] == ["0", "1", "2"]
    both = opened(tmp_path, "amc22_23", tmp_path / "eighty", "test")
    assert len(both) == 2 and both.report["published_questions"] == 83 and both[0].trace_source == "none"
    assert parse_amc({"problem": "p", "answer": 2.5}, "here").answer == "2.5"


def test_math_train_with_solutions(tmp_path):
    for subject in ("algebra", "geometry"):
        rows = [
            {"problem": f"{subject} {n}: what is it?", "solution": f"It is $\\boxed{{{n}}}$.", "level": "Level 1"}
            for n in range(20)
        ]
        write_parquet(tmp_path / "math" / subject / "train-00000-of-00001.parquet", rows)
    sizes = {
        split: len(opened(tmp_path, "math_train", tmp_path / "math", split, test_name="chain"))
        for split in ("sft", "rl", "train")
    }
    assert sizes["sft"] + sizes["rl"] == sizes["train"] == 40 and min(sizes.values()) > 5
    report = opened(tmp_path, "math_train", tmp_path / "math", "sft", test_name="chain").report
    assert set(report["sha256"]) == {"train-0", "train-1"}


def test_math_train_in_its_original_folders(tmp_path):
    """A folder for each subject, a file for each problem."""
    for n in range(24):
        file = tmp_path / "MATH" / "train" / ("algebra" if n % 2 else "geometry") / f"{n}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"problem": f"p{n}?", "solution": f"It is $\\boxed{{{n}}}$.", "level": "Level 2"}))
    rows = opened(tmp_path, "math_train", tmp_path / "MATH", "train", test_name="chain")
    assert len(rows) == 24 and list(rows.report["sha256"]) == ["train (24 files)"]
    assert sorted(int(row.answer) for row in rows) == list(range(24))


def test_math_train_with_answers_alone_is_for_rl(tmp_path):
    rows = [{"problem": f"p{n}?", "answer": str(n) if n else ""} for n in range(30)]
    (tmp_path / "math.json").write_text(json.dumps(rows))
    rl = opened(tmp_path, "math_train", tmp_path, "rl", test_name="chain")
    assert len(rl) == 29 and rl.report["dropped"] == {"no_answer": 1}
    assert {(row.reasoning, row.trace_source) for row in rl} == {("", "none")}
    with pytest.raises(UserError, match="no rows in split 'sft'"):
        opened(tmp_path, "math_train", tmp_path, "sft", test_name="chain")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x}", "x"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("none", ""),
    ],
)
def test_last_box(text, content):
    assert last_box(text) == content


def test_a_solution_without_a_box_is_dropped():
    assert parse_math({"problem": "p", "solution": "It is 3."}, "here") == "no_box_in_solution"
    with pytest.raises(UserError, match="here: field 'answer' is missing"):
        parse_math({"problem": "p"}, "here")


# --- MetaMathQA ---


def metamath_rows():
    """Three questions in five AnsAug rows, and a row of another type."""

    def gsm(n, words):
        return {
            "type": "GSM_AnsAug",
            "query": f"Leo has {n} pens and buys 2. How many now?",
            "original_question": "",
            "response": f"{words} {n} + 2 = {n + 2}.\n#### {n + 2}\nThe answer is: {n + 2}",
        }

    maths = {
        "type": "MATH_AnsAug",
        "query": "What is half of one?",
        "original_question": "",
        "response": "Half of one is $\\frac{1}{2}$.\nThe answer is: $\\frac{1}{2}$",
    }
    other = {**gsm(9, "Now"), "type": "GSM_Rephrased"}
    return [gsm(1, "First"), maths, gsm(1, "Second"), other, gsm(5, "Then"), {**maths, "response": "Half."}]


def test_metamath_keeps_the_first_row_of_each_question(tmp_path):
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(metamath_rows()))
    rows = opened(tmp_path, "metamath", tmp_path, "rl", sft_fraction=0.0, test_name="chain")
    assert [(row.question[:12], row.answer) for row in rows] == [
        ("Leo has 1 pe", "3"),
        ("What is half", "\\frac{1}{2}"),
        ("Leo has 5 pe", "7"),
    ]
    assert rows[0].reasoning == "First 1 + 2 = 3." and rows[0].trace_source == "teacher:gpt-3.5-turbo"
    assert rows.report["dropped"] == {"repeated_question": 2, "not_ansaug": 1}
    assert (rows.report["unique_questions"], rows.report["paper_counts"]) == (3, 12794)


def test_metamath_answers():
    def answer(response):
        row = {"type": "MATH_AnsAug", "query": "q", "response": response}
        parsed = parse_metamath(row, "here")
        return parsed if isinstance(parsed, str) else (parsed.answer, parsed.reasoning)

    assert answer("a\nThe answer is: 1\nb\nThe answer is: 1,200") == ("1200", "a\nThe answer is: 1\nb")
    assert answer("so 5.\n#### 5") == ("5", "so 5.")
    assert answer("so #### 5\nand on") == ("5\nand on", "so")
    assert answer("so $x$ is $\\frac12$.\nThe answer is: $\\frac12$.")[0] == "\\frac12"
    assert answer("1 or 2\nThe answer is: $1$ or $2$")[0] == "$1$ or $2$"
    assert answer("nothing") == "no_answer_sentence" == answer("The answer is: ")


# --- OpenR1-Math ---


def openr1_row(n, **changes):
    return {
        "problem": f"What is {n} + {n}?",
        "solution": f"Twice {n} is {2 * n}.",
        "answer": str(2 * n),
        "generations": [
            f"<think>\nIt is {3 * n}.\n</think>\n\nSo \\boxed{{{3 * n}}}",
            f"<think>\nHm, {n} and {n}.\n</think>\n\nThe sum is \\boxed{{{2 * n}}}.",
        ],
        "correctness_math_verify": [False, True],
        **changes,
    }


def test_openr1_takes_the_first_verified_generation(tmp_path):
    rows = [openr1_row(n) for n in range(1, 9)] + [openr1_row(9, correctness_math_verify=[False, False])]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:5])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[5:])
    sft = opened(tmp_path, "openr1", tmp_path, "sft", rl_name="chain", test_name="chain")
    assert len(sft) == 8 and sft.report["dropped"] == {"no_verified_generation": 1}
    assert sft[2].reasoning == "Hm, 3 and 3.\n\nThe sum is \\boxed{6}." and sft[2].answer == "6"
    assert {row.trace_source for row in sft} == {"teacher:deepseek-r1"}


@pytest.mark.parametrize(
    ("trace", "reasoning", "source"),
    [
        ("generation", "Hm, 4 and 4.\n\nThe sum is \\boxed{8}.", "teacher:deepseek-r1"),
        ("summary", "The sum is \\boxed{8}.", "teacher:deepseek-r1"),
        ("solution", "Twice 4 is 8.", "human:numinamath"),
    ],
)
def test_openr1_traces(trace, reasoning, source):
    parsed = parse_openr1(openr1_row(4), "here", trace)
    assert (parsed.reasoning, parsed.trace_source) == (reasoning, source)


def test_openr1_rows_that_cannot_be_used():
    endless = openr1_row(1, generations=["<think> on", "<think> and on"])
    assert parse_openr1(endless, "here", "generation") == "thinking_never_ends"
    assert parse_openr1(openr1_row(1, answer=""), "here", "generation") == "no_answer"
    with pytest.raises(UserError, match="here: expected lists 'generations' and 'correctness_math_verify'"):
        parse_openr1(openr1_row(1, generations=["one"]), "here", "generation")


# --- Countdown and Sudoku ---


def test_countdown(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"input": "30,100,93", "output": "23"}, {"input": "1,2,4", "output": "99"}])
    splits = {s: opened(tmp_path, "countdown", tmp_path, s, sft_rows=30, rl_rows=10) for s in ("sft", "rl", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"sft": 30, "rl": 10, "test": 2}
    golds = [row.gold for rows in splits.values() for row in rows]
    assert len(set(golds)) == 42
    for row in [*splits["sft"], *splits["rl"], splits["test"][0]]:
        assert judge_countdown(row.gold, row.answer)[0] and row.reasoning.count("=") == 2
    assert splits["test"][0].gold == "[[30, 100, 93], 23]"
    assert (splits["test"][1].reasoning, splits["test"][1].trace_source) == ("", "none")  # no way to 99


SUDOKU = [("0234341221434321", "1234341221434321"), ("1030341200434321", "1234341221434321")]


def write_sudoku(path):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("Puzzle", "Solution"), *SUDOKU])
    return path


def test_sudoku(tmp_path):
    write_sudoku(tmp_path / "4x4_test_sudoku.csv")
    splits = {s: opened(tmp_path, "sudoku", tmp_path, s, sft_rows=20, rl_rows=10) for s in ("sft", "rl", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"sft": 20, "rl": 10, "test": 2}
    assert len({row.question for rows in splits.values() for row in rows}) == 32
    for rows in splits.values():
        for row in rows:
            assert judge_sudoku(row.gold, row.answer)[0]
            cells = [line.split() for line in row.reasoning.splitlines()]
            assert all(row.answer[4 * (int(c[1]) - 1) + int(c[3][0]) - 1] == c[4] for c in cells)
    assert splits["test"][0].reasoning == "row 1 column 1: 1" and splits["test"][0].question.count("0234341221434321")


def test_training_puzzles_of_a_file(tmp_path):
    write_sudoku(tmp_path / "4x4_test_sudoku.csv")
    (tmp_path / "train.csv").write_text("Puzzle,Solution\n0234341221434321,1234341221434321\n" * 1)
    with (tmp_path / "train.csv").open("a") as file:
        file.writelines(f"{p},1234341221434321\n" for p in ("1204341221434321", "1234041221434321"))
    rl = opened(tmp_path, "sudoku", tmp_path, "rl", sft_fraction=0.5)
    assert (
        len(rl) == 1 and rl.report["dropped"] == {"in_test": 1} and rl.report["rows"] == {"sft": 1, "rl": 1, "test": 2}
    )


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("sudoku", "test.csv", "Puzzle,Solution\n0234,1234\n", r"test.csv line 2: expected Puzzle \(16 digits"),
        ("sudoku", "test.csv", "Puzzle,Solution\n1,2,3\n", "test.csv line 2 has another number of columns"),
        ("sudoku", "test.csv", "Puzzle,Solution\n", "test.csv holds no rows"),
        (
            "countdown",
            "test.jsonl",
            '{"input": "1,x", "output": "3"}\n',
            r"line 1: expected the fields input '30,100,93'",
        ),
        ("countdown", "none.jsonl", "", "holds none of countdown_cd3_test.jsonl, test.jsonl"),
        ("amc22_23", "amc.json", "{}", "amc.json holds no list; expected a JSON list"),
        ("amc22_23", "amc.json", "[1]", "amc.json row 1 holds a int, expected an object"),
        ("amc22_23", "amc.json", "[", "amc.json is not JSON"),
        ("math500", "test.jsonl", "\n", "test.jsonl holds no rows"),
        ("openr1", "train.parquet", "x", "train.parquet is not a readable Parquet file"),
    ],
)
def test_bad_files(tmp_path, name, file, content, message):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / file).write_text(content)
    split = "sft" if name == "openr1" else "test"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, name, tmp_path / "set", split)
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_each_split_may_come_from_another_set(tmp_path):
    write_lines(
        tmp_path / "mine" / "train.jsonl",
        [{"question": f"Is it {n}?", "answer": str(n), "reasoning": f"It is {n}."} for n in range(12)],
    )
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(metamath_rows()))
    settings = DataSettings(
        name="metamath",
        path=str(tmp_path),
        sft_name="jsonl",
        sft_path=str(tmp_path / "mine"),
        test_name="chain",
        test_rows=5,
        cache=str(tmp_path / "shared"),
    )
    # All of a set goes to the one stage that reads it, and nothing is held out where another set is the test.
    sizes = {split: len(open_split(settings, split, tmp_path / "unused")) for split in ("sft", "rl", "test", "train")}
    assert sizes == {"sft": 12, "rl": 3, "test": 5, "train": 15}
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "unused").exists()
    parts = open_split(settings, "train", tmp_path).report["parts"]
    assert [part["data_set"] for part in parts] == ["jsonl", "metamath"]


def test_settings_of_sources():
    with pytest.raises(UserError, match=r"data.rl_path is 'x', but data.rl_name is empty"):
        DataSettings(rl_path="x")
    with pytest.raises(UserError, match=r"data.sft_name is 'gsm9k'.*did you mean 'gsm8k'"):
        DataSettings(sft_name="gsm9k")
    for field, value in (("on_test_overlap", "x"), ("trace", "x")):
        with pytest.raises(UserError, match=f"data.{field} is 'x'"):
            DataSettings(**{field: value})
    with pytest.raises(UserError, match="there is no split 'validation'"):
        open_split(DataSettings(), "validation", "nowhere")


def test_published_files_are_named_with_their_checksums():
    """Sources that are fixed by a commit have one; those on the hub are checked by what the hub says."""
    fixed = [maths.MATH500, maths.AMC23, maths.AMC22_23, puzzles.COUNTDOWN, puzzles.SUDOKU]
    assert all(len(remote.sha256) == 64 and "raw.githubusercontent.com" in remote.url for remote in fixed)
    hub = [*maths.MATH_TRAIN, metamath.REMOTE, *openr1.REMOTE]
    assert len(hub) == 7 + 1 + 10 and all(remote.url.startswith("https://huggingface.co/datasets/") for remote in hub)
    assert set(TEST_ONLY) < set(DATASETS)
