"""The evaluate command from flags to report: whole, resumed, in other batches, and everything it must refuse."""

import json
import shutil

import numpy as np
import pytest

from igpo_jax.evaluation import running, store, suites
from igpo_jax.training import evaluation, statistics

QUESTIONS = [
    ("What is 2 + 3?", "5"),
    ("Add 10 and 20.", "30"),
    ("How many legs do seven spiders have, if each of them has eight legs and none of them lost a single one?", "56"),
    ("4 times 4?", "16"),
    ("Half of 9?", "4.5"),
    ("1 - 1?", "0"),
    ("Name a prime between 24 and 30.", "29"),
    ("3 * 3 * 3?", "27"),
    ("Ten tens?", "100"),
    ("What is left of 12 apples after eating 5?", "7"),
]
#: Small enough for rows of 192 tokens; every batch divides over the eight virtual devices.
SMALL = ("--template", "plain", "--length", 16, "--steps", 8, "--block-length", 8, "--cpu-devices", 8, "--batch", 8)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "sums.jsonl"
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(chat_dir, questions, tmp_path_factory):
    """The output of an evaluation that nothing disturbed: two samples a question."""
    from igpo_jax import evaluate

    folder = tmp_path_factory.mktemp("whole") / "out"
    flags = ["--checkpoint", chat_dir, "--suite", questions, "--protocol", "d1", "--output", folder, *SMALL]
    assert evaluate.main([str(flag) for flag in [*flags, "--samples", 2, "--temperature", 1.0]]) == 0
    return folder


def flags_of(whole, output=None):
    report = json.loads((whole / "report.json").read_text())
    return ["--checkpoint", report["checkpoint"]["path"], "--output", output or whole]


def again(run, whole, questions, output, *more):
    """The evaluation ``whole`` asked once more, into another folder."""
    flags = ["--suite", questions, "--protocol", "d1", *SMALL, "--samples", 2, "--temperature", 1.0]
    return run("evaluate", *flags_of(whole, output), *flags, *more)


def test_the_report_holds_scores_and_the_whole_protocol(whole, questions):
    report = json.loads((whole / "report.json").read_text())
    samples = store.read_samples(whole / "samples.jsonl")
    assert sorted(path.name for path in whole.iterdir()) == [
        "protocol.json",
        "report.json",
        "samples.html",
        "samples.jsonl",
    ]
    score = report["scores"]["sums"]
    assert (score["metric"], score["questions"], score["samples"], score["limited"]) == ("avg@2", 10, 2, False)
    assert score["correct"] == sum(sample["correct"] for sample in samples)
    assert score["score"] == pytest.approx(score["correct"] / 20)
    assert score["pass_at"]["1"]["value"] == score["score"] and set(score["pass_at"]) == {"1", "2"}
    assert score["truncated"] == np.mean([sample["truncated"] for sample in samples])
    asked = report["suites"]["sums"]
    assert asked["template"] == "plain" and len(asked["template_hash"]) == 12 and asked["chat_template"]
    assert asked["sampler"]["length"] == 16 and asked["sampler"]["steps"] == 8
    assert asked["sampler"]["temperature"] == 1.0 and asked["sampler"]["eos_exit"] == "none"
    assert report["judge"]["name"] and len(report["judge"]["version"]) == 12
    assert report["machine"]["devices"] == 8 and report["dtype"] == "float32" and report["seed"] == 0
    assert {"jax", "sympy", "math-verify", "igpo_jax", "transformers"} <= set(report["versions"])
    assert len(report["checkpoint"]["weights"]) == 12 and report["checkpoint"]["kind"] == "hf"


def test_every_question_has_its_samples(whole):
    samples = store.read_samples(whole / "samples.jsonl")
    found = {(sample["question"], sample["gold"], sample["sample"]) for sample in samples}
    assert found == {(question, gold, n) for question, gold in QUESTIONS for n in (0, 1)} and len(samples) == 20
    for sample in samples:
        # Of a character cut in half nothing is shown.
        assert "".join(sample["pieces"]) == sample["text"].rstrip("\ufffd")
        assert len(sample["pieces"]) == len(sample["reveal_step"]) == sample["length"]
        assert all(0 <= step < 8 for step in sample["reveal_step"])
        assert sample["truncated"] or sample["length"] <= 16
    assert len({sample["text"] for sample in samples}) > 10


def test_batches_and_padding_change_no_row(run, whole, questions, tmp_path):
    done = again(run, whole, questions, tmp_path / "out", "--batch", 16)
    assert done.code == 0
    assert texts(tmp_path / "out") == texts(whole)


def texts(folder):
    rows = store.read_samples(folder / "samples.jsonl")
    return {(row["id"], row["sample"]): (row["text"], row["reveal_step"]) for row in rows}


@pytest.mark.parametrize("left", ["a half line", "a batch and a half", "all samples, no report"])
def test_a_stopped_evaluation_goes_on_where_it_was(run, whole, questions, tmp_path, monkeypatch, left):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    (output / "report.json").unlink()
    stored = (whole / "samples.jsonl").read_bytes()
    lines = stored.split(b"\n")
    cut = {
        "a half line": b"\n".join([*lines[:8], lines[8][:40]]),
        "a batch and a half": b"\n".join(lines[:13]) + b"\n",
        "all samples, no report": stored,
    }[left]
    (output / "samples.jsonl").write_bytes(cut)
    asked = []

    def counting(policy, requests, *rest):
        asked.append(len(requests.row_ids))
        return evaluation.answer(policy, requests, *rest)

    monkeypatch.setattr(running, "answer", counting)
    assert again(run, whole, questions, output).code == 0
    assert asked == ([] if left == "all samples, no report" else [8, 4])
    assert (output / "samples.jsonl").read_bytes() == stored
    assert scores(output) == scores(whole)


def scores(folder):
    return json.loads((folder / "report.json").read_text())["scores"]


def test_ctrl_c_between_batches_loses_nothing(run, whole, questions, tmp_path, monkeypatch):
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluation.answer(*arguments)

    monkeypatch.setattr(running, "answer", stopping)
    done = again(run, whole, questions, tmp_path / "out")
    assert done.code == 130 and not (tmp_path / "out" / "report.json").exists()
    assert (tmp_path / "out" / "samples.jsonl").read_bytes().count(b"\n") == 8
    assert again(run, whole, questions, tmp_path / "out").code == 0
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (["--seed", 1], "seed 0"),
        (["--steps", 16], "sampler.steps 8"),
        (["--block-length", 16], "sampler.block_length 8"),
        (["--limit", 3], "questions 10"),
        (["--temperature", 0.5], "sampler.temperature 1.0"),
    ],
)
def test_another_protocol_is_refused_on_the_same_output(run, refused, whole, questions, change, field):
    before = (whole / "samples.jsonl").read_bytes()
    flags = ["--suite", questions, "--protocol", "d1", *SMALL, "--samples", 2, "--temperature", 1.0, *change]
    line = refused("evaluate", *flags_of(whole), *flags)
    assert str(whole) in line and field in line and "name another --output" in line
    assert (whole / "samples.jsonl").read_bytes() == before


def test_progress_shows_rate_and_what_is_found(run, whole, questions, tmp_path):
    done = again(run, whole, questions, tmp_path / "out", "--limit", 8)
    lines = [line for line in done.out.splitlines() if line.startswith("eval")]
    assert len(lines) == 2 and "16/16 100%" in lines[1] and "samples/s" in lines[1] and "left" in lines[1]
    assert "limited: only the first questions of sums" in done.out and "8 of 10" in done.out


def test_a_limited_report_is_not_compared_with_a_whole_one(run, refused, whole, questions, tmp_path):
    assert again(run, whole, questions, tmp_path / "out", "--limit", 8).code == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scores"]["sums"]["limited"]
    line = refused("compare", whole, tmp_path / "out")
    assert "the first 8 of 10 questions" in line and "test-8" in line


def test_two_runs_are_compared_in_pairs(run, whole, questions, tmp_path):
    assert again(run, whole, questions, tmp_path / "out", "--seed", 5).code == 0
    done = run("compare", whole, tmp_path / "out")
    assert done.code == 0 and "sums" in done.out and "exact sign test" in done.out
    assert "note: they differ in seed: 0 and 5" in done.out
    found = json.loads(run("compare", whole, tmp_path / "out", "--json").out)["suites"]["sums"]
    assert found["p"] == statistics.sign_test(found["only_second"], found["only_first"])


def test_a_training_run_is_asked_its_own_questions(run, run_dir, tmp_path):
    flags = [
        "--checkpoint",
        run_dir,
        "--suite",
        suites.OWN,
        "--protocol",
        "run",
        "--limit",
        4,
        "--cache",
        tmp_path / "c",
    ]
    done = run("evaluate", *flags, "--output", tmp_path / "out", "--cpu-devices", 8, "--batch", 8)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    asked = report["suites"]["own"]
    assert (asked["sampler"]["length"], asked["sampler"]["temperature"], asked["template"]) == (48, 0.0, "plain")
    assert asked["metric"] == "pass@1" and asked["questions_of_suite"] > 4 and report["checkpoint"]["kind"] == "run"
