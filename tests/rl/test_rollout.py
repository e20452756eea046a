"""Algorithm 1 without a network: who triggers a second round, what it is given, what is swapped in, what is earned."""

import dataclasses

import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.rl import rollout, rollout_stats, sampling
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.rollout import RewardSettings, RolloutSettings
from tests.rl.rollout_cases import CONFIG, RuleJudge, ScriptedSampler, make_context, question

LENGTH, EOS, GROUP = 16, CONFIG.eos_token_id, 4
RIGHT, WRONG = 20, 21  # tokens that the rule below looks for

FULL = "<reasoning>\nx\n</reasoning>\n<answer>\n\\boxed{1}\n</answer>"


def row(last, ends=LENGTH):
    """A completion whose last token is ``last`` and whose EOS stands at ``ends``."""
    return [22] * (ends - 1) + [last] + [EOS] * (LENGTH - ends)


def by_last_token(gold, text):
    return text.split()[-1] == str(RIGHT)


def collect(monkeypatch, write, questions, rule=by_last_token, step=3, **options):
    """One rollout with a scripted sampler and a judge by rule; also returns the sampler."""
    group = options.pop("settings", RolloutSettings(groups=len(questions), group_size=GROUP))
    sampler = ScriptedSampler(write)
    monkeypatch.setattr(sampling, "sample", sampler)
    context = make_context(RuleJudge(rule), group, **options)
    return rollout.collect(None, questions, step, context), sampler


QUESTIONS = [question(number) for number in range(3)]


def first_group_right(purpose, r):
    """Group 0 has one right completion, groups 1 and 2 none; in the second round of two groups, rows 1, 2, 3 and 6."""
    if purpose == "rollout":
        return row(RIGHT if r == 2 else WRONG, ends=4 + r)
    return row(RIGHT if r in (1, 2, 3, 6) else WRONG, ends=12)


def test_only_all_wrong_groups_draw_again(monkeypatch):
    out, sampler = collect(monkeypatch, first_group_right, QUESTIONS)
    first, second = sampler.calls
    assert (first.purpose, second.purpose, first.step, second.step) == ("rollout", "inpaint", 3, 3)
    assert (first.requests.hints == -1).all() and len(first.requests.hints) == 12
    asked = [
        np.stack([q.prompt_tokens for q in QUESTIONS for _ in range(GROUP)])[rows]
        for rows in (slice(0, 12), slice(4, 12))
    ]
    np.testing.assert_array_equal(first.requests.prompt_tokens, asked[0])
    np.testing.assert_array_equal(second.requests.prompt_tokens, asked[1])
    assert out.first_correct.tolist() == [[False, False, True, False], [False] * 4, [False] * 4]


def test_no_second_round_when_every_group_has_a_right_completion(monkeypatch):
    out, sampler = collect(monkeypatch, lambda purpose, r: row(RIGHT if r % GROUP == 1 else WRONG), QUESTIONS)
    assert len(sampler.calls) == 1
    assert not out.replaced.any() and "second_forwards" not in out.stats
    assert (out.stats["all_wrong_before"], out.stats["all_wrong_groups"]) == (0.0, 0.0)


def test_format_terms_do_not_hide_an_all_wrong_group(monkeypatch):
    """The trigger is correctness alone, although the format terms give the group a spread of rewards."""
    monkeypatch.setattr(rollout, "format_terms", lambda text: {"length": 0.1 * len(text.split())})
    out, sampler = collect(
        monkeypatch,
        lambda purpose, r: row(WRONG, ends=3 + r),
        QUESTIONS[:1],
        rewards=RewardSettings(correct=3.0, format_weight=1.0),
    )
    assert len(sampler.calls) == 2
    assert np.ptp(out.batch.rewards) > 0 and not out.batch.correct.any()
    assert out.stats["all_wrong_after"] == 1.0 and out.stats["rescued_groups"] == 0.0


@pytest.mark.parametrize(("mode", "purpose"), [("inpaint", "inpaint"), ("plain", "second"), ("none", None)])
def test_second_batch(monkeypatch, mode, purpose):
    settings = RolloutSettings(groups=3, group_size=GROUP, second_batch=mode)
    out, sampler = collect(monkeypatch, first_group_right, QUESTIONS, settings=settings)
    assert [call.purpose for call in sampler.calls] == ["rollout", purpose][: 1 + (purpose is not None)]
    if purpose is None:
        assert not out.replaced.any() and not out.batch.hint_mask.any()
        return
    second = sampler.calls[1].requests
    assert len(second.hints) == 2 * GROUP, "both arms draw the same number of completions"
    assert (second.hints >= 0).any() == (mode == "inpaint")
    assert ("hint_ratio" in out.stats) == (mode == "inpaint")
    assert out.batch.hint_mask.any() == (mode == "inpaint")
    assert out.replaced.sum() == 3, "two of the three right ones of group 1, and the only one of group 2"


def test_draws_of_the_second_round_are_keyed_by_the_global_row(monkeypatch):
    """Which rows of noise a group gets must not depend on which other groups are wrong."""

    def ids(right):
        def write(purpose, r):
            return row(RIGHT if purpose == "rollout" and r // GROUP in right else WRONG)

        _, sampler = collect(monkeypatch, write, QUESTIONS)
        return [call.requests.row_ids.tolist() for call in sampler.calls]

    first, second = ids(right=(0, 1))
    assert second == first[2 * GROUP :]
    first, second = ids(right=())
    assert second == first
    assert len(set(first)) == 3 * GROUP


def test_hint_mask_is_where_ground_truth_was_placed(monkeypatch):
    out, sampler = collect(monkeypatch, first_group_right, QUESTIONS)
    canvas = sampler.calls[1].requests.hints
    assert out.replaced.sum() == 3
    for place in range(12):
        hinted = out.batch.hint_mask[place]
        if not out.replaced[place]:
            assert not hinted.any()
            continue
        trace = QUESTIONS[place // GROUP].trace_tokens
        where = np.flatnonzero(hinted)
        assert len(where) > 0 and where.max() < len(trace)
        # The plain placement puts every hint at its own position, and the sampler's other tokens are none of these.
        np.testing.assert_array_equal(out.batch.completion_tokens[place][where], trace[where])
        assert not np.isin(out.batch.completion_tokens[place][~hinted], np.arange(1, 10)).any()
        matches = [r for r in range(8) if r // GROUP + 1 == place // GROUP and ((canvas[r] >= 0) == hinted).all()]
        assert matches, "the mask is that of a canvas of the same group"


def test_hints_differ_inside_a_group_and_protected_tokens_stay_free():
    settings = HintSettings(chunk_min=1, chunk_max=2, answer_room=4, ratio_low=0.5, ratio_high=0.9)
    asked = [question(0), question(1, trace_length=14, protected=(0, 3, 4))]
    context = make_context(RuleJudge(by_last_token), RolloutSettings(group_size=8), hints=settings)
    canvas, ratios, stats = rollout.hint_canvases(asked, np.array([1]), 5, context)
    assert canvas.shape == (8, LENGTH) and len(np.unique(ratios)) == 8
    assert len(np.unique(canvas >= 0, axis=0)) > 1
    assert (canvas[:, [0, 3, 4]] == -1).all() and (canvas[:, LENGTH - 4 :] == -1).all()
    assert stats["hint_ratio"] == pytest.approx(ratios.mean())
    assert stats["hint_share_of_canvas"] == pytest.approx((canvas >= 0).mean())
    again = rollout.hint_canvases(asked, np.array([1]), 5, context)
    np.testing.assert_array_equal(canvas, again[0])
    others = rollout.hint_canvases(asked, np.array([0, 1]), 5, context)
    np.testing.assert_array_equal(canvas, others[0][8:], err_msg="hints depend on the other all-wrong groups")
    assert (rollout.hint_canvases(asked, np.array([1]), 6, context)[0] != canvas).any()


@pytest.mark.parametrize(("protected", "seen"), [((9,), 0.0), ((), 1.0)])
def test_stats_say_whether_hints_show_the_answer(protected, seen):
    """A trace whose only 9 is its last token, shown whole: the answer is visible unless it is protected."""
    settings = HintSettings(pattern="full", chunk_min=3, chunk_max=3, answer_room=4)
    asked = question(0, protected=protected)
    tokens = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 9], np.int32)
    asked = dataclasses.replace(asked, trace_tokens=tokens, trace_text=" ".join(map(str, tokens)), gold="9")
    context = make_context(RuleJudge(by_last_token), RolloutSettings(group_size=4), hints=settings)
    canvas, _, stats = rollout.hint_canvases([asked], np.array([0]), 0, context)
    assert stats["hint_value_visible"] == seen
    assert stats["hint_chunks_dropped"] == 0.0
    np.testing.assert_array_equal(canvas[:, :9], np.tile(tokens[:9], (4, 1)))
    short = make_context(
        RuleJudge(by_last_token),
        RolloutSettings(group_size=4),
        hints=dataclasses.replace(settings, answer_room=LENGTH - 4),
    )
    dropped = rollout.hint_canvases([asked], np.array([0]), 0, short)[2]["hint_chunks_dropped"]
    # Of the chunks at 0, 3, 6 and 9, those at 6 and 9 begin behind the four positions that may hold hints; a chunk of
    # protected tokens alone does not count.
    assert dropped == (1.0 if protected else 2.0)


def test_rewards_and_advantages_are_those_of_the_mixed_groups(monkeypatch):
    out, _ = collect(monkeypatch, first_group_right, QUESTIONS)
    correct = out.batch.correct.reshape(3, GROUP)
    assert correct.sum(axis=1).tolist() == [1, 2, 1]
    np.testing.assert_array_equal(out.batch.rewards, out.batch.correct.astype(np.float32))
    for group in range(3):
        rows = slice(group * GROUP, (group + 1) * GROUP)
        expected = out.batch.rewards[rows] - out.batch.rewards[rows].mean()
        np.testing.assert_allclose(out.batch.advantages[rows], expected, atol=1e-7)
    assert out.batch.group_id.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    verdicts = [by_last_token("", text) for text in out.rows.texts]
    assert out.batch.correct.tolist() == verdicts, "texts, verdicts and tokens moved together"


def test_completions_end_with_the_first_eos(monkeypatch):
    out, _ = collect(monkeypatch, first_group_right, QUESTIONS[:1])
    lengths = out.batch.completion_mask.sum(axis=1)
    assert lengths.tolist() == [5, 6, 7, 8], "the EOS counts"
    assert out.stats["completion_length"] == pytest.approx(6.5)
    assert [len(text.split()) for text in out.rows.texts] == [4, 5, 6, 7], "the text ends before it"


def test_stats_of_a_rollout(monkeypatch):
    out, _ = collect(monkeypatch, first_group_right, QUESTIONS)
    expected = {
        "pass_at_1": 1 / 12,
        "all_wrong_before": 2 / 3,
        "all_right_before": 0.0,
        "all_wrong_after": 0.0,
        "all_wrong_groups": 2.0,
        "rescued_groups": 2.0,
        "replaced_rows": 3.0,
        "reward": 4 / 12,
        "zero_spread_groups": 0.0,
        "rollout_forwards": 7.0,
        "second_forwards": 7.0,
        "no_answer": 0.0,
        "judge_timeouts": 0.0,
    }
    assert {name: out.stats[name] for name in expected} == pytest.approx(expected)
    assert {"format_box", "format_answer_open"} <= set(out.stats)
    assert all(isinstance(value, float) for value in out.stats.values())
    assert all(np.isfinite(value) and value >= 0 for value in out.stats.values())
    assert {"rollout", "inpaint", "judge", "judge_wait"} <= set(out.seconds)


def test_format_terms_are_logged_whatever_their_weight():
    """Two of four texts have a box, one of them all four tags."""
    stats = rollout_stats.format_stats([FULL, "\\boxed{1}", "nothing", "<answer>\n<answer>\n"])
    assert stats == {
        "format_reasoning_open": 0.125 / 4,
        "format_reasoning_close": 0.125 / 4,
        "format_answer_open": 0.125 / 4,
        "format_answer_close": 0.125 / 4,
        "format_box": 0.25 / 2,
    }


def test_official_rewards():
    official = RewardSettings(correct=3.0, format_weight=1.0)
    assert rollout.reward_of(FULL, True, official) == pytest.approx(3.75)
    assert rollout.reward_of(FULL, False, official) == pytest.approx(0.75)
    assert rollout.reward_of("no tags at all", True, official) == pytest.approx(3.0)
    assert rollout.reward_of("\\boxed{1}", False, official) == pytest.approx(0.25)
    assert rollout.reward_of(FULL, True, RewardSettings()) == 1.0
    assert rollout.reward_of(FULL, False, RewardSettings()) == 0.0


def test_the_judge_sees_each_completion_with_its_own_gold(monkeypatch):
    judge = RuleJudge(by_last_token)
    sampler = ScriptedSampler(lambda purpose, r: row(23 + r % 12))
    monkeypatch.setattr(sampling, "sample", sampler)
    context = make_context(judge, RolloutSettings(group_size=GROUP, second_batch="none"))
    out = rollout.collect(None, QUESTIONS, 0, context)
    expected = {(QUESTIONS[r // GROUP].gold, context.tokenizer.decode(row(23 + r))) for r in range(12)}
    assert set(judge.asked) == expected and len(judge.asked) == 12
    assert out.rows.texts == [context.tokenizer.decode(row(23 + r)) for r in range(12)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_size": 1}, r"group_size is 1.* use 2 or more"),
        ({"groups": 0}, "groups"),
        ({"rows_per_program": 0}, "rows_per_program"),
        ({"second_batch": "inpant"}, r"second_batch is 'inpant'.*did you mean 'inpaint'"),
        ({"replace_order": "last"}, "replace_order is 'last'"),
        ({"replace_fraction": 1.5}, "replace_fraction is 1.5"),
        ({"replace_fraction": -0.1}, "replace_fraction is -0.1"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        RolloutSettings(**changes)
