"""Packed sampling gives each request what it would get alone, in order, and judges while the next program runs."""

import dataclasses

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import denoise, noise
from igpo_jax.models import llada
from igpo_jax.rl import sampling
from tests.rl.rollout_cases import CONFIG, MODEL, SAMPLER, IdTokenizer, mesh_of, network, question

ROWS, SEED, STEP = 11, 4, 2


@pytest.fixture(scope="module")
def policy():
    return network()


@pytest.fixture(scope="module")
def requests():
    """Eleven prompts; some rows free, some with hints, one wholly given."""
    rng = np.random.default_rng(1)
    asked = [question(number) for number in range(ROWS)]
    hints = np.where(rng.random((ROWS, 16)) < 0.3, rng.integers(0, 38, (ROWS, 16)), -1).astype(np.int32)
    hints[[0, 3, 4, 9]] = -1
    hints[6] = 5
    return sampling.Requests(
        np.stack([q.prompt_tokens for q in asked]),
        np.stack([q.prompt_mask for q in asked]),
        hints,
        np.arange(ROWS) + 70,
    )


def context(rows_per_program=8, **changes):
    sampler = dataclasses.replace(SAMPLER, **changes)
    return sampling.SamplerContext(MODEL, sampler, mesh_of(2), rows_per_program, SEED)


def run(policy, requests, where, purpose="rollout", step=STEP, **options):
    with jax.set_mesh(where.mesh):
        placed = jax.device_put(policy, llada.Policy(llada.shardings(CONFIG, where.mesh)))
        return sampling.sample(placed, requests, where, purpose, step, **options)


@pytest.fixture(scope="module")
def alone(policy, requests):
    """All requests in one call of the sampler, in order: the result that packing must not change."""
    keys = noise.row_keys(jax.random.key(SEED), "rollout", STEP, requests.row_ids)
    source = noise.KeyNoise(keys)
    return denoise.denoise(
        policy, MODEL, SAMPLER, requests.prompt_tokens, requests.prompt_mask, source, hints=requests.hints
    )


def test_packing_does_not_change_a_row(policy, requests, alone):
    """Two programs over two devices, with a filler row, against one call on one device."""
    samples, cost = run(policy, requests, context())
    np.testing.assert_array_equal(samples.tokens, alone.tokens)
    np.testing.assert_array_equal(samples.reveal_step, alone.reveal_step)
    given = requests.hints >= 0
    np.testing.assert_array_equal(samples.tokens[given], requests.hints[given])
    assert (cost.programs, cost.rows) == (2, ROWS)
    assert cost.row_forwards_needed == int(np.asarray(alone.steps_needed).sum())


def test_every_program_is_handed_out_once_while_the_next_one_runs(policy, requests, alone, monkeypatch):
    events = []
    launch = denoise.denoise

    def spied(*args, **options):
        events.append("launch")
        return launch(*args, **options)

    def consume(rows, tokens):
        events.append("consume")
        seen.extend(rows.tolist())
        np.testing.assert_array_equal(tokens, np.asarray(alone.tokens)[rows])

    seen = []
    monkeypatch.setattr(denoise, "denoise", spied)
    run(policy, requests, context(rows_per_program=4), consume=consume)
    assert sorted(seen) == list(range(ROWS))
    assert events == ["launch", "launch", "consume", "launch", "consume", "consume"]


def test_filler_rows_cost_nothing(policy, requests):
    """Two rows that were given whole and one without hints, in a program of four: only the latter's steps are run."""
    few = dataclasses.replace(
        requests,
        **{name: getattr(requests, name)[[6, 6, 0]] for name in ("prompt_tokens", "prompt_mask", "hints", "row_ids")},
    )
    samples, cost = run(policy, few, context(rows_per_program=4))
    assert samples.tokens.shape == (3, 16)
    assert (cost.programs, cost.rows) == (1, 3)
    assert cost.forwards == cost.row_forwards_needed <= 6
    assert cost.row_forwards_paid == 4 * cost.forwards
    idle = dataclasses.replace(few, hints=np.full((3, 16), 7, np.int32))
    samples, cost = run(policy, idle, context(rows_per_program=4))
    assert cost.forwards == 0 and (samples.tokens == 7).all()


def test_draws_are_keyed_by_purpose_step_and_row(policy, requests, alone):
    other_step, _ = run(policy, requests, context(), step=STEP + 1)
    other_purpose, _ = run(policy, requests, context(), "evaluate")
    moved = dataclasses.replace(requests, row_ids=np.roll(requests.row_ids, 1))
    other_rows, _ = run(policy, moved, context())
    free = np.asarray(requests.hints[0] < 0)
    for other in (other_step, other_purpose, other_rows):
        assert (other.tokens[0, free] != np.asarray(alone.tokens)[0, free]).any()


def test_a_temperature_of_its_own_compiles_nothing_new(policy, requests):
    run(policy, requests, context())
    before = denoise._denoise._cache_size()
    warm, _ = run(policy, requests, context(temperature=0.7))
    hot, _ = run(policy, requests, context(temperature=3.0))
    assert denoise._denoise._cache_size() == before
    assert (warm.tokens != hot.tokens).any()


def test_programs_must_divide_over_the_devices(policy, requests):
    with pytest.raises(ValueError, match=r"3 rows .* 2 devices"):
        run(policy, requests, context(rows_per_program=3))


def test_texts_end_before_the_first_eos():
    eos = CONFIG.eos_token_id
    tokens = np.array([[1, 2, eos, 3], [eos, 1, 1, 1], [4, 5, 6, 7], [1, eos, eos, 2]])
    assert sampling.texts_of(tokens, eos, IdTokenizer().decode) == ["1 2", "", "4 5 6 7", "1"]
