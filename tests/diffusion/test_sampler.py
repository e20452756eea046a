"""Settings of the sampler: what is refused, and with which advice."""

import pytest

from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"length": 250},
            "length is 250, which blocks of sampler.block_length 32 do not divide; use a length of 224 or 256",
        ),
        ({"length": 20}, "use a length of 32,"),
        ({"steps": 7}, "fewer than the 8 blocks of 32 tokens; each block needs a step, so use at least 8 steps"),
        ({"steps": 100}, "steps is 100, which does not divide over 8 blocks; use 96 or 104 steps"),
        ({"steps": 0}, "steps is 0, expected a positive number"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"cfg_scale": -0.5}, "cfg_scale is -0.5"),
        ({"selection": "low_confidense"}, "did you mean 'low_confidence'"),
        ({"eos_exit": "rows"}, "did you mean 'row'"),
        ({"step_budget": "fewer"}, "choose one of: open_masks, schedule"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError) as error:
        Sampler(**changes)
    assert message in str(error.value)


def test_presets():
    assert Sampler() == Sampler(length=256, steps=128, block_length=32, eos_exit="row", forbid_mask=True)
    assert (Sampler().blocks, Sampler().steps_per_block) == (8, 16)
    llada = Sampler.llada(length=64, steps=32, block_length=32)
    assert (llada.eos_exit, llada.forbid_mask, llada.temperature) == ("none", False, 0.0)
    official = Sampler.official()
    assert (official.eos_exit, official.forbid_mask, official.temperature, official.length) == (
        "batch",
        False,
        1.2,
        256,
    )
    assert hash(official) == hash(Sampler.official())
