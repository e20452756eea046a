"""Every signature is forced, stays silent where it should, and is found again by a run that was continued."""

import dataclasses

import pytest

from igpo_jax.errors import UserError
from igpo_jax.training import health
from igpo_jax.training.health import HealthSettings, Monitor

SETTINGS = HealthSettings(window=4)
WELL = {
    "all_wrong_after": 0.1,
    "hint_ratio": 0.4,
    "grad_norm": 1.0,
    "pass_at_1": 0.5,
    "pass_at_2": 0.6,
    "pass_at_8": 0.8,
    "zero_spread": 0.2,
    "entropy_generated": 0.3,
    "repeated_tokens": 0.05,
    "ratio_gap": 1e-5,
}


def well(count):
    """Rows of a run that goes well: the gradient norm moves a little, pass@1 and pass@k rise together."""
    return [
        WELL | {"grad_norm": 1.0 + 0.1 * (-1) ** n, "pass_at_1": 0.5 + 0.001 * n, "pass_at_8": 0.8 + 0.001 * n}
        for n in range(count)
    ]


def changed(count, **values):
    return [row | values for row in well(count)]


FORCED = {
    "all_wrong_after": [*well(8), *changed(8, all_wrong_after=0.6)],
    "grad_variance_growth": [*well(8), *[WELL | {"grad_norm": 1.0 + 0.5 * (-1) ** n} for n in range(8)]],
    "pass_change": [*well(8), *changed(8, pass_at_1=0.6, pass_at_8=0.7)],
    "zero_spread": [*well(8), *changed(8, zero_spread=1.0)],
    "entropy_share": [*well(8), *changed(8, entropy_generated=0.01)],
    "repeated_tokens": [*well(8), *changed(8, repeated_tokens=0.9)],
    "ratio_gap": [*well(8), *changed(1, ratio_gap=0.1)],
}


def watch(rows, monitor=None, start=0):
    monitor = monitor or Monitor(SETTINGS, "igpo")
    return [found for step, row in enumerate(rows, start + 1) for found in monitor.observe(step, row)]


def test_a_run_that_goes_well_is_left_in_peace():
    assert watch(well(40)) == []


def test_every_signature_has_a_limit_and_a_forced_case():
    fields = {field.name for field in dataclasses.fields(HealthSettings)} - {"window"}
    assert set(health.SIGNATURES) == fields == set(FORCED)


@pytest.mark.parametrize("name", FORCED)
def test_signature_is_found_once_with_its_advice(name):
    found = watch(FORCED[name])
    assert [finding.signature for finding in found] == [name]
    assert found[0].step > 8 and found[0].stage == "igpo"
    assert "\n" not in found[0].advice and len(found[0].advice) > 30


@pytest.mark.parametrize("name", FORCED)
def test_a_limit_that_is_further_off_is_not_reached(name):
    far = {"pass_change": 0.5, "grad_variance_growth": 1e3, "entropy_share": 1e-4, "all_wrong_after": 0.9}
    settings = dataclasses.replace(SETTINGS, **{name: far.get(name, 1.0)})
    assert watch(FORCED[name], Monitor(settings, "igpo")) == []


def test_all_wrong_groups_without_inpainting_are_the_baselines_normal_state():
    rows = changed(20, all_wrong_after=0.9)
    for row in rows:
        del row["hint_ratio"]
    assert watch(rows) == []


def test_pass_at_k_may_fall_together_with_pass_at_1():
    assert watch([*well(8), *changed(8, pass_at_1=0.4, pass_at_8=0.7)]) == []


def test_a_signature_that_went_away_is_reported_when_it_comes_back():
    bad = changed(6, zero_spread=1.0)
    found = watch([*bad, *well(8), *bad])
    assert [finding.signature for finding in found] == ["zero_spread", "zero_spread"]


def test_values_that_are_no_numbers_are_left_out():
    assert watch(changed(20, grad_norm=float("nan"), entropy_generated=float("inf"))) == []


def test_a_window_of_zero_watches_nothing():
    assert watch(FORCED["zero_spread"], Monitor(HealthSettings(window=0), "igpo")) == []


def test_a_continued_run_finds_the_same_and_keeps_one_record_of_each(tmp_path):
    rows = [row for name in FORCED for row in FORCED[name]]
    (tmp_path / "whole").mkdir()
    whole = Monitor(SETTINGS, "igpo", tmp_path / "whole")
    watch(rows, whole)
    expected = health.read_findings(tmp_path / "whole")
    assert len(expected) >= 7
    for cut in range(0, len(rows), 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        watch(rows[: cut + 5], Monitor(SETTINGS, "igpo", folder))
        with (folder / health.FILE).open("a") as handle:
            handle.write('{"stage": "igpo", "st')  # killed while writing
        continued = Monitor(SETTINGS, "igpo", folder)
        continued.replay(list(enumerate(rows[:cut], 1)))  # the checkpoint was five rows behind
        watch(rows[cut:], continued, start=cut)
        assert health.read_findings(folder) == expected


def test_findings_of_another_stage_are_kept(tmp_path):
    watch(FORCED["zero_spread"], Monitor(SETTINGS, "grpo", tmp_path))
    Monitor(SETTINGS, "igpo", tmp_path).replay([])
    assert [finding.stage for finding in health.read_findings(tmp_path)] == ["grpo"]


@pytest.mark.parametrize(
    "values", [{"window": 1}, {"window": -3}, {"zero_spread": 0.0}, {"grad_variance_growth": 1.0}, {"ratio_gap": 0.0}]
)
def test_impossible_limits_are_refused(values):
    with pytest.raises(UserError, match=f"health.{next(iter(values))}"):
        HealthSettings(**values)
