"""Traces of several sources can be told apart in the metrics of a run."""

import numpy as np

from igpo_jax.rl.rollout_stats import source_stats

CORRECT = np.array([[True, False], [False, False], [True, True], [False, False]])
RESCUED = np.array([False, True, False, False])


def test_each_source_has_its_own_columns():
    stats = source_stats(["human:x", "rewritten:y", "human:x", "rewritten:y"], CORRECT, RESCUED)
    assert stats == {
        "source/human:x/pass_at_1": 0.75,
        "source/human:x/all_wrong_before": 0.0,
        "source/human:x/rescued_share": 0.0,
        "source/rewritten:y/pass_at_1": 0.0,
        "source/rewritten:y/all_wrong_before": 1.0,
        "source/rewritten:y/rescued_share": 0.5,
    }


def test_one_source_adds_nothing():
    assert source_stats(["human:x"] * 4, CORRECT, RESCUED) == {}
