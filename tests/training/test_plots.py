"""Every subject that was logged becomes a readable picture; the others are left out."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from igpo_jax.training import plots
from igpo_jax.training.metrics import MetricsLog, Row
from igpo_jax.training.subjects import SUBJECTS, evaluation_labels

RL = {
    "reward": 0.5,
    "pass_at_1": 0.4,
    "all_wrong_before": 0.3,
    "all_wrong_after": 0.1,
    "all_wrong_groups": 3.0,
    "rescued_groups": 2.0,
    "replaced_rows": 7.0,
    "entropy_hint": 0.9,
    "entropy_generated": 0.5,
    "hint_logp_gap": 0.2,
    "clip_low": 0.01,
    "clip_high": 0.02,
    "kl": 0.001,
    "grad_norm": 1.5,
    "completion_length": 33.0,
    "hint_ratio": 0.4,
    "learning_rate": 1e-4,
    "rollout_tokens_per_second": 900.0,
    "goodput": 0.9,
    "rollout_seconds": 4.0,
    "update_seconds": 2.0,
}


def ink(path):
    """Share of pixels that are not white."""
    return float((imread(path)[..., :3] < 0.95).any(axis=-1).mean())


def names(paths):
    return {path.stem for path in paths}


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with MetricsLog(folder, tensorboard=False) as log:
        log.write("eval", 0, {"pass_at_1": 0.1, "pass_at_1_low": 0.05, "pass_at_1_high": 0.2, "pass_at_8": 0.3})
        for step in range(1, 40):
            log.write("sft", step, {"loss": 3 / step})
        log.write("eval", 39, {"pass_at_1": 0.3, "pass_at_1_low": 0.25, "pass_at_1_high": 0.4, "pass_at_8": 0.5})
        for step in range(1, 6):
            log.write("igpo", step, {name: value * (1 + 0.1 * step) for name, value in RL.items()})
        log.write("eval", 5, {"pass_at_1": 0.4, "pass_at_1_low": 0.35, "pass_at_1_high": 0.5, "mean_length": 30.0})
    return folder


def test_every_subject_is_drawn_once_and_the_overview_last(full_run):
    written = plots.plot_run(full_run)
    assert names(written) == {subject.name for subject in SUBJECTS} | {"overview"}
    assert written[-1].name == "overview.png"
    assert all(path.parent == full_run / "plots" for path in written)
    for path in written:
        assert 0.005 < ink(path) < 0.6, path.name


def test_what_was_not_logged_is_left_out(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in range(1, 4):
            log.write("sft", step, {"loss": 1.0 / step, "learning_rate": 1e-3})
            log.write("igpo", step, {"kl": math.nan, "reward": 0.5 if step > 1 else math.nan})
    first = plots.plot_run(tmp_path)
    assert names(first) == {"sft_loss", "reward", "overview"}
    assert plots.plot_run(tmp_path) == first


def test_an_empty_run_draws_nothing(tmp_path):
    assert plots.plot_run(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def subject(name):
    return next(s for s in SUBJECTS if s.name == name)


def test_values_reach_the_curves_scaled_and_in_order():
    rows = [Row("igpo", n, 0.0, {"all_wrong_before": n / 10, "all_wrong_after": n / 20}) for n in (1, 2, 3)]
    before, after = plots._curves(subject("all_wrong"), rows)
    np.testing.assert_allclose(before.x, [1, 2, 3])
    np.testing.assert_allclose(before.y, [10, 20, 30])
    np.testing.assert_allclose(after.y, [5, 10, 15])
    assert (before.label, after.label) == ("before the second batch", "after it")


def test_two_rl_stages_get_curves_of_their_own():
    rows = [Row(stage, 1, 0.0, {"reward": value}) for stage, value in (("grpo", 0.1), ("igpo", 0.2), ("sft", 0.3))]
    curves = plots._curves(subject("reward"), rows)
    assert [(curve.label, float(curve.y[0])) for curve in curves] == [("grpo: reward", 0.1), ("igpo: reward", 0.2)]


def test_evaluations_of_all_stages_share_one_axis():
    rows = [Row("eval", step, 0.0, {"pass_at_1": 0.1, "pass_at_16": 0.2}) for step in (0, 600)]
    rows.append(Row("igpo/eval", 5, 0.0, {"pass_at_1": 0.5}))
    one, sixteen = plots._curves(subject("evaluation"), rows)
    np.testing.assert_allclose(one.x, [0, 1, 2])
    np.testing.assert_allclose(sixteen.x, [0, 1])
    assert (one.label, sixteen.label) == ("pass@1", "pass@16")


def drawn(name, rows):
    axes = Figure().add_subplot()
    plots._draw(axes, subject(name), plots._curves(subject(name), rows), rows)
    return axes


def test_evaluations_are_named_after_the_stage_before_them():
    stages = [("eval", 0), ("sft", 10), ("eval", 10), ("igpo/eval", 5), ("igpo", 5), ("igpo", 9), ("eval", 9)]
    rows = [Row(stage, step, 0.0, {"pass_at_1": 0.5}) for stage, step in stages]
    assert evaluation_labels(rows) == ["start", "sft", "igpo 5", "igpo"]
    assert [tick.get_text() for tick in drawn("evaluation", rows).get_xticklabels()] == evaluation_labels(rows)


def test_a_curve_at_the_top_is_not_cut():
    rows = [Row("igpo", n, 0.0, {"all_wrong_before": 1.0, "all_wrong_after": 0.5}) for n in (1, 2)]
    axes = drawn("all_wrong", rows)
    assert axes.get_ylim() == (0, 100) and not any(line.get_clip_on() for line in axes.lines)


def test_phases_are_whatever_ends_in_seconds():
    curves = plots._curves(subject("time"), [Row("igpo", 1, 0.0, {"judge_seconds": 1.0, "reward": 2.0})])
    assert [curve.label for curve in curves] == ["judge"]


def test_judging_is_drawn_inside_the_phases_and_not_on_top():
    rows = [Row("igpo", n, 0.0, {"judge_seconds": 1.0, "rollout_seconds": 4.0}) for n in (1, 2)]
    axes = Figure().add_subplot()
    plots._draw(axes, subject("time"), plots._curves(subject("time"), rows), rows)
    assert axes.get_legend_handles_labels()[1] == ["judge, within", "rollout"]
    assert axes.get_ylim()[1] < 1.4 * 4.5, "the stack is 4 seconds high, not 5, with room for the legend"
    only = Figure().add_subplot()
    judged = [Row("igpo", 1, 0.0, {"judge_seconds": 1.0})]
    plots._draw(only, subject("time"), plots._curves(subject("time"), judged), judged)
    assert len(only.lines) == 1


def test_pictures_are_drawn_again_while_a_run_goes_on(tmp_path, monkeypatch):
    drawn, now = [], [0.0]

    def plot_run(directory):
        drawn.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(plots, "plot_run", plot_run)
    painter = plots.Painter(tmp_path, pause=60.0, clock=lambda: now[0])
    while now[0] < 300:
        painter.row_written()
        now[0] += 1.0
    # The first after the pause; the next one 50 times as long after it as the drawing took.
    assert drawn == [60.0, 162.0, 264.0]


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_running_mean_equals_a_loop(window):
    values = np.array([1.0, math.nan, 3.0, -2.0, math.nan, math.nan, math.nan, 8.0])
    means = plots.running_mean(values, window)
    for i in range(len(values)):
        near = [values[j] for j in range(len(values)) if abs(i - j) <= window // 2 and math.isfinite(values[j])]
        expected = sum(near) / len(near) if near else math.nan
        assert means[i] == pytest.approx(expected, nan_ok=True)


def test_a_curve_that_is_zero_throughout_stands_on_the_ground():
    axes = drawn("clip_fraction", [Row("igpo", n, 0.0, {"clip_low": 0.0, "clip_high": 0.0}) for n in (1, 2)])
    assert axes.get_ylim() == (0, 1)
