"""Paired comparison: counts and p-values by hand, and what it refuses to compare."""

import json

import pytest

from igpo_jax.errors import UserError
from igpo_jax.evaluation import comparison
from tests.evaluation.records import report, sample


def written(folder, records, samples=1, edit=None):
    """An output folder that ``comparison.read`` can read."""
    made = report(records, samples)
    if edit:
        edit(made)
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(made))
    (folder / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return comparison.read(str(folder))


def right(*numbers, total=12):
    return [sample(n, n in numbers) for n in range(total)]


def test_mcnemar_by_hand(tmp_path):
    first = written(tmp_path / "a", right(0, 1, 2))
    # In another order: questions are matched by id. Gained 3 to 8, lost 2.
    second = written(tmp_path / "b", right(0, 1, *range(3, 9))[::-1])
    found = comparison.compare(first, second)["suites"]["sums"]
    assert (found["only_first"], found["only_second"], found["questions"]) == (1, 6, 12)
    assert found["scores"] == [pytest.approx(3 / 12), pytest.approx(8 / 12)]
    assert found["difference"] == pytest.approx(5 / 12)
    # Seven discordant questions, at most one of them against: 2 x (1 + 7) / 128.
    assert found["p"] == pytest.approx(16 / 128) and found["test"] == "exact McNemar"
    low, high = found["interval"]
    assert low < 5 / 12 < high
    text = comparison.table(comparison.compare(first, second))
    assert "+41.7" in text and "0.12" in text and "exact McNemar" in text


def test_several_samples_are_compared_question_by_question(tmp_path):
    def rows(counts):
        return [sample(n, s < count, sample=s) for n, count in enumerate(counts) for s in range(4)]

    first, second = written(tmp_path / "a", rows([0, 1, 2, 4]), 4), written(tmp_path / "b", rows([1, 3, 2, 3]), 4)
    found = comparison.compare(first, second)["suites"]["sums"]
    assert (found["only_first"], found["only_second"]) == (1, 2) and found["p"] == 1.0
    assert found["difference"] == pytest.approx(2 / 16) and "sign test" in found["test"]


def test_equal_runs_differ_by_nothing(tmp_path):
    first, second = written(tmp_path / "a", right(1, 2)), written(tmp_path / "b", right(1, 2))
    found = comparison.compare(first, second)
    assert found["suites"]["sums"]["p"] == 1.0 and found["suites"]["sums"]["interval"] == [0.0, 0.0]
    assert found["notes"] == []


def set_field(path, value):
    def edit(made):
        for name in path[:-1]:
            made = made[name]
        made[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("protocol",), "d1", "protocol is 'paper' and 'd1'"),
        (("judge", "version"), "k", "judge.version is"),
        (("suites", "sums", "template_hash"), "u", "suites.sums.template_hash"),
        (("suites", "sums", "sampler", "length"), 9, "suites.sums.sampler.length is 8 and 9"),
        (("suites", "sums", "questions_sha256"), "r", "suites.sums.questions_sha256"),
    ],
)
def test_other_protocols_are_refused_with_the_difference(tmp_path, path, value, shown):
    first = written(tmp_path / "a", right(1))
    second = written(tmp_path / "b", right(1), edit=set_field(path, value))
    with pytest.raises(UserError, match="not evaluated alike") as caught:
        comparison.compare(first, second)
    assert shown in str(caught.value)


def test_other_machines_and_files_are_only_noted(tmp_path):
    first = written(tmp_path / "a", right(1))
    second = written(tmp_path / "b", right(1), edit=set_field(("machine", "device"), "TPU"))
    second.report["suites"]["sums"]["sources_sha256"] = {"train": "x", "test": "s"}
    assert comparison.compare(first, second)["notes"] == ["machine.device: 'cpu' and 'TPU'"]


def test_other_questions_are_refused_by_name(tmp_path):
    first, second = written(tmp_path / "a", right(1)), written(tmp_path / "b", right(1, total=11))
    for one, other in ((first, second), (second, first)):
        with pytest.raises(UserError, match=rf"question test-11 is in {tmp_path}/a but not in {tmp_path}/b"):
            comparison.compare(one, other)


def test_no_common_suite_and_a_report_that_is_not_of_its_samples(tmp_path):
    first = written(tmp_path / "a", right(1))
    second = written(tmp_path / "b", [sample(1, True, suite="other")])
    with pytest.raises(UserError, match="no suite is in both"):
        comparison.compare(first, second)
    with pytest.raises(UserError, match=r"3 of them right, but report\.json counts 12 and 1"):
        rows = right(1, 2, 3)
        written(tmp_path / "c", rows, edit=set_field(("scores", "sums", "correct"), 1))
