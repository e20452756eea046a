import itertools
import random
import re

import pytest

from igpo_jax.data import chain
from igpo_jax.data.settings import DataSettings
from igpo_jax.errors import UserError

SMALL = DataSettings(sft_rows=400, rl_rows=300, test_rows=120, seed=3)


@pytest.fixture(scope="module")
def splits():
    return chain.generate(SMALL)


def recompute(question):
    """The answer by a reading of the question that shares no line with the library."""
    state = int(re.search(r"has (\d+)", question).group(1))
    for verb, words in re.findall(r"(?:she|he) (\w+) a (hundred|ten|one)\.", question):
        step = {"hundred": 100, "ten": 10, "one": 1}[words]
        state += step if verb in ("finds", "earns", "wins") else -step
    return state


def test_every_answer_and_trace_is_right(splits):
    for example in (example for rows in splits.values() for example in rows):
        assert recompute(example.question) == int(example.answer)
        assert example.reasoning.split()[-1] == example.answer
        assert chain.verify(example.question, example.reasoning, example.answer) is None


def test_no_step_carries(splits):
    for example in splits["sft"] + splits["test"]:
        start = re.search(r"\d+", example.question).group()
        states = [start, *re.findall(r"\d+", example.reasoning)]
        for before, after in itertools.pairwise(states):
            assert len(after) == 3 and after[0] != "0"
            changed = [abs(int(a) - int(b)) for a, b in zip(before, after, strict=True) if a != b]
            assert changed == [1]


def test_splits_share_no_question_and_no_sum(splits):
    for first, second in (("sft", "rl"), ("sft", "test"), ("rl", "test")):
        for key in (lambda example: example.question, sum_of):
            assert not {key(example) for example in splits[first]} & {key(example) for example in splits[second]}
    for rows in splits.values():
        assert len({example.question for example in rows}) == len(rows)


def sum_of(example):
    return (re.search(r"\d+", example.question).group(), *re.findall(r"\d+", example.reasoning))


def test_lengths_are_dealt_out_evenly():
    settings = DataSettings(sft_lengths=(2, 5), rl_lengths=(7,), test_lengths=(1, 3, 4), sft_rows=40, test_rows=60)
    splits = chain.generate(settings)
    lengths = {split: [chain.chain_length(example) for example in rows] for split, rows in splits.items()}
    assert sorted(lengths["sft"]) == [2] * 20 + [5] * 20
    assert set(lengths["rl"]) == {7}
    assert sorted(lengths["test"]) == [1] * 20 + [3] * 20 + [4] * 20


def test_answers_range_over_hundreds_of_values(splits):
    assert len({example.answer for example in splits["sft"]}) > 200


def test_the_seed_decides_and_other_dials_leave_test_alone(splits):
    assert chain.generate(SMALL) == splits
    harder = DataSettings(sft_rows=10, rl_rows=20, rl_lengths=(9,), test_rows=120, seed=3)
    assert chain.generate(harder)["test"] == splits["test"]
    other = DataSettings(sft_rows=400, rl_rows=300, test_rows=120, seed=4)
    assert chain.generate(other)["test"] != splits["test"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("reasoning", lambda text: text.replace("5", "6", 1), "recomputed"),
        ("answer", lambda text: str(int(text) + 1), "recomputed"),
        ("question", lambda text: text.replace("has", "had"), "form"),
        ("question", lambda text: re.sub(r"(he|she) \w+ ", r"\1 eats up ", text, count=1), "not an operation"),
        ("question", lambda text: re.sub(r"\d{3}", "999", text, count=1), "carries|recomputed"),
    ],
)
def test_verify_notices_a_changed_row(splits, old, new, complaint):
    example = next(row for row in splits["sft"] if "5" in row.reasoning and " 9" not in row.question)
    row = {"question": example.question, "reasoning": example.reasoning, "answer": example.answer}
    assert re.search(complaint, chain.verify(**{**row, old: new(row[old])}))


def test_a_wrong_trace_stops_the_build(monkeypatch):
    monkeypatch.setattr(chain, "write_trace", lambda problem: "finds one 1")
    with pytest.raises(UserError, match="test-0 is wrong: the trace is 'finds one 1', recomputed"):
        chain.generate(SMALL)


def test_lengths_with_too_few_questions_are_named(monkeypatch):
    monkeypatch.setattr(chain, "draw_problem", lambda rng, length: chain.Problem(100, (("finds", "one"),)))
    with pytest.raises(UserError, match=r"data\.test_lengths holds \d, .*data\.test_rows \(\d+ made so far\)"):
        chain.generate(DataSettings(test_rows=1000))


def test_draws_use_every_operation():
    rng = random.Random(0)
    drawn = {step for _ in range(300) for step in chain.draw_problem(rng, 3).steps}
    assert drawn == {(verb, amount) for verb in (*chain.GAINS, *chain.LOSSES) for amount in chain.AMOUNTS}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "gsm9k"}, "data.name is 'gsm9k'.*did you mean 'gsm8k'"),
        ({"sft_lengths": ()}, "data.sft_lengths is \\(\\)"),
        ({"rl_lengths": (2, 0)}, "data.rl_lengths"),
        ({"test_rows": 0}, "data.test_rows is 0"),
        ({"sft_fraction": 1.5}, "data.sft_fraction is 1.5"),
        ({"on_missing_answer": "ignore"}, "data.on_missing_answer"),
        ({"on_shared_question": "mix"}, "data.on_shared_question"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(UserError, match=message):
        DataSettings(**fields)
