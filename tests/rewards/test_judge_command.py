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
        (["--rejudge=nowhere"], "nowhere/rollouts has no .jsonl files"),
        (["--gold=5", "--answer=5", "--kind=maths"], "did you mean 'math'"),
        (["--gold=5", "--answer=5", "--kind=countdown"], "expected numbers and target"),
    ],
)
def test_wrong_use_is_one_sentence(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
