"""The search for the largest micro-batch that fits."""

import dataclasses

import pytest

from igpo_jax.errors import UserError
from igpo_jax.planning import search, topology
from tests.training import tiny


@pytest.mark.parametrize("least", range(7))
@pytest.mark.parametrize("start", range(6))
def test_the_lowest_place_that_fits_is_found_from_anywhere(least, start):
    """Place 6 of 6 stands for "none fits": then the last one, with the most micro-batches, is left."""
    asked = []

    def fits(place):
        asked.append(place)
        return place >= least

    assert search.climb(fits, start, 6) == min(least, 5)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("rows", "shards", "counts"),
    [(512, 8, [1, 2, 4, 8, 16, 32, 64]), (512, 64, [1, 2, 4, 8]), (48, 16, [1]), (8, 16, [1])],
)
def test_every_device_keeps_whole_rows(rows, shards, counts):
    assert search.part_counts(rows, shards) == counts


def test_both_passes_are_cut_alike(monkeypatch):
    """Scoring is cut into as many parts as the update, so the winner's other programs fit with it."""
    tried = []

    def fits(settings, target, stage):
        tried.append((settings.rl.micro_batches, settings.rl.score_batches))
        return settings.rl.micro_batches >= 2, "needs 1 GiB"

    monkeypatch.setattr(search, "_update_fits", fits)
    settings = tiny.run_settings(sft=dataclasses.replace(tiny.run_settings().sft, steps=0))
    found, lines = search.largest(settings, topology.parse("v6e:2x4"), lambda _: None)
    assert (found.rl.micro_batches, found.rl.score_batches) == (2, 2)
    assert tried == [(2, 2), (1, 1)] and len(lines) == 3
    held = settings.rl.rollout.rows // 2 // 8
    assert lines[-1] == (
        f"the most rows that fit are {held} a device at a time: --config.rl.micro_batches=2 --config.rl.score_batches=2"
    )
    assert search.parts(found) == {"rl.micro_batches": 2, "rl.score_batches": 2}
    assert search.parts(dataclasses.replace(found, rl=dataclasses.replace(found.rl, steps=0))) == {
        "sft.micro_batches": found.sft.micro_batches
    }


def test_where_none_fits_that_is_said(monkeypatch):
    monkeypatch.setattr(search, "_update_fits", lambda *_: (False, "needs 99 GiB"))
    settings = tiny.run_settings(sft=dataclasses.replace(tiny.run_settings().sft, steps=0))
    found, lines = search.largest(settings, topology.parse("v6e:2x4"), lambda _: None)
    assert lines[-1].startswith("not even 1 rows a device at a time fit: --config.rl.micro_batches=")
    assert found.rl.micro_batches == settings.rl.rollout.rows // 8


def test_nothing_to_search():
    settings = tiny.run_settings()
    settings = dataclasses.replace(
        settings, sft=dataclasses.replace(settings.sft, steps=0), rl=dataclasses.replace(settings.rl, steps=0)
    )
    with pytest.raises(UserError, match=r"sft\.steps and rl\.steps are both 0"):
        search.largest(settings, topology.parse("v6e:2x4"), lambda _: None)
