"""The named protocols are the published ones, and changes to them keep what they do not name."""

import dataclasses

import pytest

from igpo_jax.commands.checkpoint import RunHabits
from igpo_jax.data.templates import get_template
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError
from igpo_jax.evaluation.protocols import Changes, protocol_of
from igpo_jax.evaluation.suites import parse_names
from igpo_jax.rl.hints import HintSettings


@pytest.mark.parametrize(
    ("name", "suite", "length", "steps", "block", "temperature", "samples", "template"),
    [
        ("paper", "gsm8k", 512, 256, 32, 0.0, 1, "paper"),
        ("paper", "math500", 512, 256, 32, 0.0, 1, "paper"),
        ("paper", "amc23", 512, 256, 32, 0.1, 16, "paper"),
        ("paper", "amc22_23", 512, 256, 32, 0.1, 16, "paper"),
        ("d1", "gsm8k", 256, 128, 32, 0.0, 1, "d1"),
        ("llada", "gsm8k", 256, 256, 8, 0.0, 1, "boxed"),
        ("llada", "math500", 512, 512, 64, 0.0, 1, "boxed"),
    ],
)
def test_published(name, suite, length, steps, block, temperature, samples, template):
    found = protocol_of(name, suite)
    sampler = found.sampler
    assert (sampler.length, sampler.steps, sampler.block_length, sampler.temperature) == (
        length,
        steps,
        block,
        temperature,
    )
    assert (found.samples, found.template.name, sampler.selection) == (samples, template, "low_confidence")
    assert sampler.eos_exit == ("row" if name == "paper" else "none") and sampler.forbid_mask == (name == "paper")


def test_amc_stands_for_the_40_problems_of_2023():
    assert parse_names("gsm8k, amc") == ["gsm8k", "amc23"]


@pytest.mark.parametrize(("length", "steps"), [(128, 64), (512, 256)])
def test_d1_has_three_lengths_and_the_steps_go_along(length, steps):
    sampler = protocol_of("d1", "gsm8k", Changes(length=length)).sampler
    assert (sampler.length, sampler.steps, sampler.block_length) == (length, steps, 32)


def test_a_run_is_asked_as_it_was_trained():
    sampler = Sampler(length=48, steps=24, block_length=16, temperature=0.7)
    run = RunHabits(get_template("plain"), sampler, HintSettings(), "auto", samples=5)
    found = protocol_of("run", "own", run=run)
    assert (found.sampler, found.samples, found.template.name, found.metric) == (sampler, 5, "plain", "avg@5")
    greedy = protocol_of("run", "own", Changes(temperature=0.0, samples=1), run)
    assert greedy.sampler == dataclasses.replace(sampler, temperature=0.0) and greedy.metric == "pass@1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Changes(length=250), "--length is 250.*--block-length 32"),
        (Changes(steps=4), "--steps is 4"),
        (Changes(block_length=0), "--block-length is 0"),
        (Changes(samples=3), "--samples is 3 at temperature 0"),
        (Changes(template="papre"), "did you mean 'paper'"),
    ],
)
def test_changes_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        protocol_of("d1", "gsm8k", changes)
