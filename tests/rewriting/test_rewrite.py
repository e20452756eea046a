"""Rewriting against a real local server that misbehaves, through the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from igpo_jax import cli, rewrite
from tests.rewriting.endpoint import running

KEY = "sk-very-secret-0123456789"


def write_rows(path, marks):
    """A file with one row for each mark; the right answer of row n is 10 + n."""
    rows = [
        {
            "question": f"Question {n} {mark}: what is 10 plus {n}?",
            "answer": str(10 + n),
            "reasoning": f"Let me think. First, ten. Hmm, wait.\n10 + {n} = {10 + n}. " + "Yes. " * 30,
        }
        for n, mark in enumerate(marks)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(data, output, address, *more):
    """Runs the command in this process; returns its exit code."""
    argv = [
        "rewrite",
        f"--data={data}",
        f"--output={output}",
        f"--endpoint={address}",
        "--model=small",
        "--backoff=0.01",
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.run(rewrite.main, [*argv, *more], define=rewrite.define, requires=("output",))
    return stopped.value.code


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decisions(output):
    """The last reason of every row, in the order of the rows."""
    found = {line["id"]: line["reason"] for line in lines(output / "rows.jsonl")}
    return [found[name] for name in sorted(found, key=lambda name: int(name.rpartition("-")[2]))]


def test_accepts_what_the_judge_accepts_and_says_why_not(tmp_path, capsys):
    wanted = {
        "": "accepted",
        "[thinking]": "accepted",
        "[uncounted]": "accepted",
        "[half]": "accepted",
        "[wrong]": "wrong_answer",
        "[untagged]": "no_tags",
        "[unboxed]": "no_answer",
        "[empty]": "empty",
        "[cut]": "cut_off",
        "[long]": "too_long",
        "[400]": "refused",
    }
    data, output = write_rows(tmp_path / "rows.jsonl", wanted), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, "--price_reply=1000000") == 0
        assert set(server.asked.values()) == {1}
        assert server.keys == {""}
    assert decisions(output) == list(wanted.values())
    rows = lines(output / "rewritten.jsonl")
    assert [row["answer"] for row in rows] == ["10", "11", "12", "13"]
    assert all(row["trace_source"] == "rewritten:small" for row in rows)
    assert rows[1]["reasoning"] == "10 + 1 = 11"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["accepted"] == 4 and summary["open"] == 0 and summary["rows"] == 11
    assert sum(summary["rejected"].values()) == 7
    assert summary["requests"] == 11 and summary["requests_with_estimated_tokens"] == 1
    assert summary["cost"] == summary["reply_tokens"] > 9 * 20 - 1
    assert summary["words_after"]["median"] < summary["words_before"]["median"]
    assert (output / "lengths.png").read_bytes()[:4] == b"\x89PNG"
    assert "wrong answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "mark", ["[500x2]", "[truncatedx2]", "[shortx2]", "[nullx2]", "[hangupx2]", "[dripx1]", "[slowx1]"]
)
def test_tries_again_what_may_go_well_later(tmp_path, mark):
    data, output = write_rows(tmp_path / "rows.jsonl", [mark]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, "--timeout=0.5") == 0
        assert sum(server.asked.values()) == int(mark[-2]) + 1
    assert decisions(output) == ["accepted"]
    assert [line["kind"] for line in lines(output / "replies.jsonl")] == ["retry"] * int(mark[-2]) + ["reply"]


def test_what_the_judge_needs_is_passed_on(tmp_path):
    data, output = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text('{"question": "q", "answer": "0.5", "gold": "1/2", "reasoning": "1 / 2 = 0.5"}\n')
    with running() as server:
        assert call(data, output, server.address) == 0
    assert [(row["answer"], row["gold"]) for row in lines(output / "rewritten.jsonl")] == [("0.5", "1/2")]


def test_waits_as_long_as_the_server_asks(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", ["[429x1]"]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address) == 0
        first, second = next(iter(server.times.values()))
    assert second - first >= 0.3


def test_a_row_without_a_usable_reply_stays_open_and_is_asked_again(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", ["[500x3]", ""]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, "--retries=2") == 1
        assert [row["answer"] for row in lines(output / "rewritten.jsonl")] == ["11"]
        assert call(data, output, server.address, "--retries=2") == 0
        assert sorted(server.asked.values()) == [1, 4]
    assert [row["answer"] for row in lines(output / "rewritten.jsonl")] == ["10", "11"]


def test_asks_again_for_a_rejected_row_where_that_is_allowed(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", ["[wrongx2]"]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address) == 0
        assert decisions(output) == ["wrong_answer"]
        assert call(data, output, server.address, "--asks=3") == 0
        assert sum(server.asked.values()) == 3
    assert decisions(output) == ["accepted"]


def test_never_has_more_requests_under_way_than_allowed(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", [""] * 20), tmp_path / "out"
    with running(delay=0.05) as server:
        assert call(data, output, server.address, "--concurrency=3") == 0
        assert server.largest == 3


def test_budgets_are_never_passed_and_count_earlier_runs(tmp_path, capsys):
    data, output = write_rows(tmp_path / "rows.jsonl", [""] * 12), tmp_path / "out"
    with running(delay=0.02) as server:
        assert call(data, output, server.address, "--max_requests=5") == 1
        assert sum(server.asked.values()) == 5
        assert "budget is spent" in capsys.readouterr().out
        assert call(data, output, server.address, "--max_requests=5") == 1
        assert sum(server.asked.values()) == 5
        assert call(data, output, server.address, "--max_total_tokens=3500") == 1
        used = json.loads((output / "summary.json").read_text())
        assert 5 < sum(server.asked.values()) < 12
        assert used["prompt_tokens"] + used["reply_tokens"] <= 3500
        assert call(data, output, server.address) == 0
        assert set(server.asked.values()) == {1}
    assert [row["answer"] for row in lines(output / "rewritten.jsonl")] == [str(10 + n) for n in range(12)]


def test_an_endpoint_that_refuses_everything_stops_the_run_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    data, output = write_rows(tmp_path / "rows.jsonl", ["[401]"] * 30), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, "--concurrency=2") == 1
        assert sum(server.asked.values()) <= 4
        assert server.keys == {f"Bearer {KEY}"}
    assert "HTTP 401" in capsys.readouterr().out


def test_an_endpoint_that_is_not_there_stops_the_run(tmp_path, capsys):
    data, output = write_rows(tmp_path / "rows.jsonl", [""] * 40), tmp_path / "out"
    with running() as server:
        address = server.address
    assert call(data, output, address, "--retries=1") == 1
    assert "answered none of the last 10 rows" in capsys.readouterr().out
    assert len(lines(output / "replies.jsonl")) < 40


def test_the_key_reaches_the_server_and_nothing_else(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", KEY)
    data, output = write_rows(tmp_path / "rows.jsonl", ["", "[echo]", "[401]"]), tmp_path / "out"
    with running() as server:
        call(data, output, server.address, "--api_key_env=OTHER_KEY", "--concurrency=1")
        assert server.keys == {f"Bearer {KEY}"}
    written = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert KEY.encode() not in written and b"[API key]" in written
    assert KEY not in "".join(capfd.readouterr())


def test_a_key_that_is_no_secret_changes_no_reply(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "1")
    data, output = write_rows(tmp_path / "rows.jsonl", [""]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address) == 0
    assert lines(output / "rewritten.jsonl")[0]["reasoning"] == "10 + 0 = 10"


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY}é"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(tmp_path, capsys, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert call(write_rows(tmp_path / "rows.jsonl", [""]), tmp_path / "out", "http://127.0.0.1:9/v1") == 2
    error = capsys.readouterr().err
    assert "$OPENAI_API_KEY holds a character" in error and KEY not in error


def test_says_what_went_wrong_where_rows_stay_open(tmp_path, capsys):
    data, output = write_rows(tmp_path / "rows.jsonl", ["[500]"]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, "--retries=0") == 1
    assert "1 rows got no usable reply (HTTP 500: internal error)" in capsys.readouterr().out


def test_a_prompt_of_ones_own(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{words} words. {braces} stay.\nProblem:\n{question}\nLong solution:\n{reasoning}")
    data, output = write_rows(tmp_path / "rows.jsonl", ["{reasoning} {words}"]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address, f"--prompt={prompt}") == 0
        assert list(server.asked) == ["Question 0 {reasoning} {words}: what is 10 plus 0?"]
    stored = json.loads((output / "run.json").read_text())
    assert stored["prompt"] == prompt.read_text() and len(stored["prompt_hash"]) == 12


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--temperature=0.1"], r"holds a rewrite with temperature 0\.7, now 0\.1"),
        (["--words_high=500", "--seed=3"], r"seed 0, now 3; words_high 1000, now 500"),
        (["--limit=1"], r"rows '2 rows, .*', now '1 rows"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, capsys, more, complaint):
    data, output = write_rows(tmp_path / "rows.jsonl", ["", ""]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address) == 0
        before = {path: path.read_bytes() for path in output.glob("*.json*")}
        assert call(data, output, server.address, *more) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in output.glob("*.json*")}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--endpoint=HOST/v1"], "--endpoint is 'HOST/v1', expected an address"),
        (["--endpoint=https://me:secret@host/v1"], "holds a user, a password or a query"),
        (["--model="], "--model is missing"),
        (["--words_low=0"], "expected 1 <= low <= high"),
        (["--concurrency=0"], "--concurrency is 0, expected at least 1"),
        (["--timeout=0"], "expected seconds above 0"),
        (["--prompt=nowhere.txt"], "--prompt=nowhere.txt cannot be read"),
        (["--slack=nan"], "--slack is nan, expected at least 1"),
        (["--limit=-1"], "--limit is -1, expected a number of rows"),
        (["--data="], "--data is missing"),
        (["--data=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, more, complaint):
    data = write_rows(tmp_path / "rows.jsonl", [""])
    assert call(data, tmp_path / "out", "http://127.0.0.1:9/v1", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and error.count("\n") == 1


def test_a_row_without_reasoning_is_named(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "q", "answer": "1", "reasoning": ""}\n')
    assert call(data, tmp_path / "out", "http://127.0.0.1:9/v1") == 2
    assert "reasoning" in capsys.readouterr().err


def start(data, output, address, *more):
    argv = [sys.executable, "-m", "igpo_jax.rewrite", f"--data={data}", f"--output={output}", f"--endpoint={address}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*argv, "--model=small", "--backoff=0.01", *more], **pipes)


def wait_for(path, count, process):
    """Waits until a file has ``count`` lines."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline and process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def test_nothing_is_lost_when_it_is_killed_in_the_middle(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", ["", "[wrong]", "[500x1]"] * 20), tmp_path / "out"
    with running(delay=0.02) as server:
        for finished in (8, 25):
            process = start(data, output, server.address, "--concurrency=4")
            wait_for(output / "rows.jsonl", finished, process)
            process.kill()
            process.wait()
        with (output / "replies.jsonl").open("a") as handle:
            handle.write('{"id": "all-3", "kind": "rep')  # what a power failure leaves
        assert call(data, output, server.address) == 0
        # A reply that arrived is never asked for again: only what was under way at the two kills was lost.
        needed = 60 + 20
        assert needed <= sum(server.asked.values()) <= needed + 2 * 4
    assert decisions(output) == ["accepted", "wrong_answer", "accepted"] * 20
    assert [row["answer"] for row in lines(output / "rewritten.jsonl")] == [
        str(10 + n) for n in range(60) if n % 3 != 1
    ]


def test_a_reply_without_a_decision_is_judged_and_not_asked_for_again(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", ["", ""]), tmp_path / "out"
    with running() as server:
        assert call(data, output, server.address) == 0
        (output / "rows.jsonl").write_text("")
        assert call(data, output, server.address) == 0
        assert set(server.asked.values()) == {1}
    assert decisions(output) == ["accepted", "accepted"]


def test_a_signal_ends_it_with_the_accepted_rows_written(tmp_path):
    data, output = write_rows(tmp_path / "rows.jsonl", [""] * 200), tmp_path / "out"
    with running(delay=0.05) as server:
        process = start(data, output, server.address, "--concurrency=2")
        wait_for(output / "rows.jsonl", 3, process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM; the same command goes on" in said
    assert len(lines(output / "rewritten.jsonl")) == len(lines(output / "rows.jsonl")) >= 3


def test_two_processes_do_not_share_a_folder(tmp_path, capsys):
    data, output = write_rows(tmp_path / "rows.jsonl", [""] * 200), tmp_path / "out"
    with running(delay=0.05) as server:
        process = start(data, output, server.address, "--concurrency=1")
        try:
            wait_for(output / "rows.jsonl", 1, process)
            assert call(data, output, server.address) == 2
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
    assert "is in use by another rewrite" in capsys.readouterr().err


def test_every_setting_is_a_flag_with_help():
    values = flags.FlagValues()
    rewrite.define(values)
    assert values["words_high"].default == 1000 and "words" in values["words_high"].help
