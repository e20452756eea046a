"""Every program is compiled before the first batch, once for each shape, and never again; what does not fit says so."""

import collections
import dataclasses
import types

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import denoise
from igpo_jax.errors import UserError
from igpo_jax.parallel import clock
from igpo_jax.training import rl_stage
from igpo_jax.training.warmup import WarmUp
from tests.training import tiny
from tests.training.recipe_cases import train

pytestmark = pytest.mark.usefixtures("compiled_once")

BASE = tiny.run_settings(warm_up=True)
SETTINGS = dataclasses.replace(BASE, evaluation=dataclasses.replace(BASE.evaluation, every=0, questions=3))
#: Programs that see a batch: denoising, scoring, the update batch, both updates.
BIG = ("_denoise", "score", "assemble", "moved")


def counts():
    return collections.Counter({name: clock.compiles().by_name[name] for name in BIG})


@pytest.fixture(scope="module")
def run(compiled_once, tmp_path_factory):
    """What a run compiled: in all, and from the first batch of RL on; and the run."""
    # What other tests have compiled is forgotten: it would not be compiled again.
    denoise._denoise.clear_cache()
    before, at_first_batch = counts(), []
    with pytest.MonkeyPatch.context() as patch:
        real = rl_stage.RlLoop.gather

        def gather(self, state, step):
            at_first_batch.append(counts())
            return real(self, state, step)

        patch.setattr(rl_stage.RlLoop, "gather", gather)
        recorder = train(SETTINGS, tmp_path_factory.mktemp("warm"))
    return counts() - before, counts() - at_first_batch[0], recorder


def test_each_program_compiles_once_for_each_shape(run):
    """Rollouts of 8 and 16 rows, evaluations of 8 rows at temperature 0; one update a stage."""
    compiled, _, recorder = run
    assert {len(rollout.out.stats) for rollout in recorder.rollouts}
    assert compiled == {"_denoise": 3, "score": 1, "assemble": 1, "moved": 2}


def test_nothing_big_is_compiled_once_the_first_batch_has_come(run):
    _, after_warm_up, recorder = run
    assert len(recorder.rollouts) == SETTINGS.rl.steps
    assert not after_warm_up


def test_warming_up_changes_no_number(run, tmp_path):
    _, _, recorder = run
    cold = train(dataclasses.replace(SETTINGS, warm_up=False), tmp_path)
    for stage in ("sft", "rl"):
        for one, other in zip(
            jax.tree.leaves(recorder.results[stage]), jax.tree.leaves(cold.results[stage]), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_what_was_compiled_is_said(capsys):
    warm = WarmUp("igpo")
    warm.run("scoring", lambda: jax.jit(lambda x: x * 1.625)(np.ones(3)))
    warm.compile("the update", lambda: jax.jit(lambda x: x * 1.375).lower(np.ones(3, np.float32)))
    warm.note()
    said = capsys.readouterr().out
    assert said.startswith("igpo: scoring, the update (") and "a device) compiled in " in said
    assert said.endswith("(2 programs)\n")


def needs(gib):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=gib << 30, output_size_in_bytes=gib << 30, temp_size_in_bytes=0, alias_size_in_bytes=0
    )
    compiled = types.SimpleNamespace(memory_analysis=lambda: memory)
    return lambda: types.SimpleNamespace(compile=lambda: compiled)


def test_a_program_that_does_not_fit_is_one_sentence(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 16 << 30})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    warm = WarmUp("igpo")
    warm.compile("the update", needs(8))
    with pytest.raises(UserError, match=r"igpo: the update does not fit .*it needs 18\.0 GiB of the 16\.0 GiB"):
        warm.compile("the update", needs(9))


def test_a_compiler_without_room_is_one_sentence_and_other_errors_stay():
    def fail(words):
        raise jax.errors.JaxRuntimeError(words)

    with pytest.raises(UserError, match=r"scoring does not fit into the device's memory \(RESOURCE_EXHAUSTED: 20G\)"):
        WarmUp("igpo").run("scoring", lambda: fail("RESOURCE_EXHAUSTED: 20G\nmore"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        WarmUp("igpo").run("scoring", lambda: fail("INTERNAL: broken"))
