"""The judge command: cases, one verdict explained, rollouts judged again, and input that is not understood."""

import json
import pathlib

import pytest

from igpo_jax import cli, judge

CASES = pathlib.Path(__file__).parents[1] / "data" / "verify_cases.jsonl"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.run(judge.main, ["judge", "--workers=1", *arguments], define=judge.define, requires=())
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def write(path: pathlib.Path, *rows: dict) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_shared_cases_are_counted(capsys):
    code, out, _ = run(capsys, f"--cases={CASES}")
    assert code == 0
    assert out.splitlines()[-1].startswith("136 of 136 as intended")


def test_every_miss_is_shown_with_its_line(capsys, tmp_path):
    path = write(
        tmp_path / "cases.jsonl",
        {"gold": "1/2", "answer": "\\boxed{0.5}", "equal": True},
        {"gold": "1/2", "answer": "\\boxed{0.5\u202e}", "equal": True, "note": "hidden"},
        {"gold": "5", "answer": "no box", "equal": True},
    )
    _, out, _ = run(capsys, f"--cases={path}")
    assert "cases.jsonl:2: intended equal (hidden); gold 1/2, answer 0.5\\u202e" in out
    assert "cases.jsonl:3: intended equal; gold 5, no answer" in out
    assert out.splitlines()[-1] == "1 of 3 as intended"


@pytest.mark.parametrize(
    ("gold", "answer", "shown"),
    [
        ("\\frac12", "so \\boxed{0.5", ["answer  0.5  (open box)", "verdict equal: equal in value"]),
        ("x+1", "1+x", ["answer  1+x  (no marked answer: all of the text)", "verdict equal"]),
        ("5", "", ["answer  none  (none)", "verdict not equal: no answer"]),
    ],
)
def test_one_verdict_is_explained(capsys, gold, answer, shown):
    code, out, _ = run(capsys, f"--gold={gold}", f"--answer={answer}")
    assert code == 0
    assert all(line in out for line in shown)


def test_rollouts_are_judged_again(capsys, tmp_path):
    write(
        tmp_path / "rollouts" / "000001.jsonl",
        {"gold": "5", "completion": "\\boxed{5}", "correct": True},
        {"gold": "5", "completion": "\\boxed{5.0}", "correct": False},
    )
    write(tmp_path / "rollouts" / "000002.jsonl", {"gold": "5", "completion": "\\boxed{6}", "correct": 0.0})
    code, out, _ = run(capsys, f"--rejudge={tmp_path}")
    assert code == 0
    assert "000001.jsonl:2: stored as not correct; gold 5, answer 5.0: same number" in out
    assert out.splitlines()[-1] == "all: 3 rollouts, 1 correct before, 2 now, 1 changed"


def test_a_run_knows_what_its_gold_answers_are(capsys, tmp_path):
    puzzle = {"gold": "[[1, 2, 3], 7]", "completion": "\\boxed{1+2*3}", "correct": True}
    write(tmp_path / "rollouts" / "000001.jsonl", puzzle)
    write(tmp_path / "config.json", {"judge": {"kind": "countdown"}})
    assert "1 correct before, 1 now, 0 changed" in run(capsys, f"--rejudge={tmp_path}")[1]
    assert "1 correct before, 0 now, 1 changed" in run(capsys, f"--rejudge={tmp_path}", "--kind=math")[1]


def test_nothing_that_a_model_wrote_reaches_the_terminal(capsys, tmp_path):
    case = {"gold": "5", "answer": "\\boxed{5\x1b[31m}", "equal": True, "note": "\x1b[2J"}
    path = write(tmp_path / "cases.jsonl", case)
    path.write_text(path.read_text() + "\n\n")
    said = run(capsys, f"--cases={path}")[1] + run(capsys, "--gold=5", "--answer=5\x1b[31m")[1]
    assert "\x1b" not in said and "\\x1b[2J" in said and "0 of 1" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"gold": "1", "answer": "1", "equal": true}\nnot json\n', "line 2 is not JSON"),
        (b'{"gold": "1", "answer": 1, "equal": true}\n', "line 1 has answer=1"),
        (b'{"gold": "1", "answer": "1"}\n', "line 1 has no equal"),
        (b"[1]\n", "line 1 has no gold"),
        (b"\xff\xfe\n", "line 1 is not JSON"),
        (b"", "has no rows"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(capsys, tmp_path, content, message):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content)
    code, out, err = run(capsys, f"--cases={path}")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(path) in err
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs one of --cases=FILE, --rejudge=RUN"),
        (["--gold=5"], "go together"),
        (["--cases=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--rejudge=nowhere"], "nowhere has neither rollouts/*.jsonl"),
        (["--gold=5", "--answer=5", "--kind=maths"], "did you mean 'math'"),
        (["--gold=5", "--answer=5", "--kind=countdown"], "expected numbers and target"),
    ],
)
def test_wrong_use_is_one_sentence(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err


def evaluated(tmp_path, right=(True, False)):
    """An evaluation of two suites, stored with verdicts that are not this judge's."""
    from igpo_jax.evaluation import store
    from tests.evaluation.records import report, sample

    rows = [
        sample(5, right[0], text="so \\boxed{5.0}"),
        sample(6, right[1], text="\\boxed{6}"),
        sample(1, True, suite="countdown", gold="[[3, 4], 12]", text="\\boxed{3*4}"),
    ]
    made = report(rows)
    made["suites"]["countdown"]["kind"] = "countdown"
    made["judge"]["version"] = "older"
    write(tmp_path / "samples.jsonl", *rows)
    (tmp_path / "report.json").write_text(json.dumps(made))
    (tmp_path / "protocol.json").write_text(json.dumps({k: v for k, v in made.items() if k != "scores"}))
    return lambda: (store.read_json(tmp_path / "report.json"), store.read_samples(tmp_path / "samples.jsonl"))


def test_an_evaluation_is_judged_again(capsys, tmp_path):
    stored = evaluated(tmp_path)
    before = stored()
    code, out, _ = run(capsys, f"--rejudge={tmp_path}")
    assert code == 0 and "samples.jsonl:2: stored as not correct; gold 6, answer 6" in out
    assert out.splitlines()[-1] == "samples.jsonl: 3 samples, 2 correct before, 3 now, 1 changed"
    assert stored() == before


def test_new_verdicts_are_stored_on_request(capsys, tmp_path):
    stored = evaluated(tmp_path)
    code, out, _ = run(capsys, f"--rejudge={tmp_path}", "--write")
    report, rows = stored()
    assert code == 0 and [row["correct"] for row in rows] == [True, True, True]
    assert report["scores"]["sums"]["score"] == 1.0 and report["judge"]["version"] != "older"
    assert "100.0%" in out and (tmp_path / "samples.html").is_file()


def test_what_cannot_be_judged_again_is_said(capsys, tmp_path):
    assert "neither rollouts" in run(capsys, f"--rejudge={tmp_path}")[2]
    assert "--write stores" in run(capsys, "--gold=1", "--answer=1", "--write")[2]
    evaluated(tmp_path)
    (tmp_path / "report.json").unlink()
    assert "no report.json yet" in run(capsys, f"--rejudge={tmp_path}", "--write")[2]


def test_help_names_only_flags_that_the_command_has(capsys):
    with pytest.raises(SystemExit):
        cli.run(judge.main, ["judge", "--help"], define=judge.define, requires=(), common=())
    out = capsys.readouterr().out
    assert "--rejudge" in out and "--config" not in out and "--workdir" not in out
    with pytest.raises(SystemExit):
        cli.run(judge.main, ["judge", "--config.seed=1"], define=judge.define, requires=(), common=())
    assert "this command has none" in capsys.readouterr().err
