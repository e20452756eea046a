"""Scores and their intervals from samples made by hand."""

import pytest

from igpo_jax.evaluation import page, reports, running, scoring
from igpo_jax.training import statistics
from tests.evaluation.records import report, sample


def test_one_sample_a_question_is_pass_at_1_with_wilson():
    rows = [sample(n, n % 3 == 0, truncated=n == 1, has_box=n < 2, answer=None if n == 5 else "1") for n in range(9)]
    score = scoring.score(rows)
    assert (score["questions"], score["correct"], score["samples"]) == (9, 3, 1)
    assert score["score"] == pytest.approx(1 / 3)
    assert tuple(score["interval"]) == statistics.wilson(3, 9) and score["interval_method"] == "Wilson"
    assert score["truncated"] == pytest.approx(1 / 9) and score["no_box"] == pytest.approx(7 / 9)
    assert score["no_answer"] == pytest.approx(1 / 9) and score["timed_out"] == 0.0
    assert list(score["pass_at"]) == ["1"]


def test_several_samples_give_avg_at_k_with_a_seeded_bootstrap():
    counts = [0, 2, 6, 1, 3, 0, 6, 4]
    rows = [sample(n, s < count, sample=s) for n, count in enumerate(counts) for s in range(6)]
    score = scoring.score(rows[::-1], seed=4)
    assert score["score"] == pytest.approx(sum(counts) / 48) == pytest.approx(score["pass_at"]["1"]["value"])
    assert list(score["pass_at"]) == ["1", "2", "4", "5", "6"]
    assert score["pass_at"]["6"]["value"] == pytest.approx(6 / 8)
    assert score["pass_at"]["2"]["value"] == pytest.approx(statistics.mean_pass_at_k(counts, 6, 2))
    low, high = score["interval"]
    assert 0 < low < score["score"] < high < 1 and "bootstrap over questions, seed 4" in score["interval_method"]
    assert score == scoring.score(rows[::-1], seed=4) and score["interval"] != scoring.score(rows, seed=5)["interval"]


def test_the_table_shows_every_suite_and_says_what_is_limited():
    rows = [sample(0, True), sample(1, False), sample(0, True, suite="more")]
    made = report(rows)
    made["scores"]["more"]["limited"] = True
    made["suites"]["more"]["questions_of_suite"] = 500
    text = reports.table(made)
    assert "50.0%" in text and "1 of 500" in text and "limited: only the first questions of more" in text


def test_an_interval_says_how_it_was_made_where_all_questions_score_the_same():
    score = scoring.score([sample(n, False, sample=s) for n in range(4) for s in range(2)])
    assert tuple(score["interval"]) == statistics.wilson(0, 4) and score["interval_method"].startswith("Wilson")


def test_a_changed_protocol_says_so():
    assert "changed" not in reports.table(report([sample(0, True)]))
    made = report([sample(0, True)], changed={"block_length": 8, "template": "plain"})
    assert reports.table(made).endswith("protocol paper, changed: block-length 8, template plain")
    assert "paper, changed: block-length 8" in page.render(made, [sample(0, True)])


def test_a_missing_question_is_no_report(monkeypatch):
    wanted = [("sums", f"test-{n}", 0) for n in range(3)]
    monkeypatch.setattr(running, "keys", lambda batch: wanted)
    running.require_complete([None], [sample(n, True) for n in range(3)])
    with pytest.raises(ValueError, match=r"1 of 3 samples are missing.*sample 0 of question test-1 of suite sums"):
        running.require_complete([None], [sample(0, True), sample(2, True)])
    with pytest.raises(ValueError, match="4 samples for 3"):
        running.require_complete([None], [sample(n, True) for n in (0, 1, 2, 2)])
