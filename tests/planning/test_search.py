"""The search for the largest micro-batch that fits."""

import dataclasses
import types

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


RL_ONLY = dataclasses.replace(tiny.run_settings(), sft=dataclasses.replace(tiny.run_settings().sft, steps=0))


@pytest.fixture
def compiled(monkeypatch):
    """Settings whose update was "compiled"; as many rows at a time fit as the seed says."""
    tried = []

    def compile_one(settings, target, stage):
        tried.append(settings)
        rows = settings.rl.rollout.rows // settings.rl.micro_batches
        return types.SimpleNamespace(name="update", fits=rows <= tried[0].seed, needed=rows / 10), "splash"

    monkeypatch.setattr(search, "_compiled", compile_one)
    return tried


def test_both_passes_are_cut_alike(compiled):
    """Scoring is cut into as many parts as the update, so the winner's other programs fit with it."""
    notes = []
    settings = dataclasses.replace(RL_ONLY, seed=8)
    found = search.largest(settings, topology.parse("v6e:2x4"), notes.append)
    assert (found.settings.rl.micro_batches, found.settings.rl.score_batches) == (2, 2)
    assert [(one.rl.micro_batches, one.rl.score_batches) for one in compiled] == [(2, 2), (1, 1)]
    assert found.changes == {"rl.micro_batches": 2, "rl.score_batches": 2}
    assert found.update[0].needed == 0.8 and found.update[1] == "splash"
    assert found.sentence == (
        "the most rows that fit are 1 a device at a time: --config.rl.micro_batches=2 --config.rl.score_batches=2"
    )
    assert notes[1] == "rl.micro_batches=2: 1 rows a device at a time, needs 0.80 GiB of 31.25, fits"
    assert notes[3] == "rl.micro_batches=1: 2 rows a device at a time, needs 1.60 GiB of 31.25, does not fit"


def test_where_none_fits_that_is_said(compiled):
    found = search.largest(dataclasses.replace(RL_ONLY, seed=0), topology.parse("v6e:2x4"), lambda _: None)
    assert found.sentence.startswith("not even 1 rows a device at a time fit: --config.rl.micro_batches=2 ")
    assert found.settings.rl.micro_batches == 2 and not found.update[0].fits


def test_nothing_to_search():
    settings = tiny.run_settings()
    settings = dataclasses.replace(
        settings, sft=dataclasses.replace(settings.sft, steps=0), rl=dataclasses.replace(settings.rl, steps=0)
    )
    with pytest.raises(UserError, match=r"sft\.steps and rl\.steps are both 0"):
        search.largest(settings, topology.parse("v6e:2x4"), lambda _: None)
