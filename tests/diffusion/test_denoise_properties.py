"""What holds for every denoising run: hints stay, masks go, rows are independent, no step is wasted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import denoise, noise
from igpo_jax.diffusion.layout import canvas_first
from igpo_jax.errors import UserError
from igpo_jax.models import llada

BATCH, WIDTH, MASK, EOS, WORD = 6, 5, 38, 39, 7
SAMPLER = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0)


def keys(batch=BATCH, seed=1):
    return noise.KeyNoise(noise.row_keys(jax.random.key(seed), "rollout", 0, np.arange(batch)))


@pytest.fixture
def batch(prompts):
    rng = np.random.default_rng(5)
    tokens, valid = prompts(rng, BATCH, WIDTH)
    hinted = rng.uniform(size=(BATCH, SAMPLER.length)) < np.linspace(0, 0.9, BATCH)[:, None]
    hints = np.where(hinted, rng.integers(0, 38, hinted.shape), -1).astype(np.int32)
    return tokens, valid, hints


def test_hints_never_change_and_no_mask_remains(small, batch):
    tokens, valid, hints = batch
    sampler = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, record=True)
    out = denoise.denoise(*small, sampler, tokens, valid, keys(), hints=hints)
    for step in np.flatnonzero(np.asarray(out.trace.ran)):
        seen = np.asarray(out.trace.tokens[step])
        np.testing.assert_array_equal(seen[hints >= 0], hints[hints >= 0])
    assert not np.any(np.asarray(out.tokens) == MASK)
    steps = np.asarray(out.reveal_step)
    np.testing.assert_array_equal(steps == denoise.HINT, hints >= 0)
    assert steps.max() < sampler.steps


def test_hints_everywhere_are_the_result_without_a_forward(small, batch):
    tokens, valid, _ = batch
    hints = np.random.default_rng(0).integers(0, 38, (BATCH, SAMPLER.length)).astype(np.int32)
    out = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints)
    np.testing.assert_array_equal(np.asarray(out.tokens), hints)
    assert int(out.forwards) == 0
    assert not np.asarray(out.steps_needed).any()


def test_a_hint_that_is_the_mask_token_is_a_free_place(small, batch):
    tokens, valid, hints = batch
    free = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints)
    masks = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=np.where(hints < 0, MASK, hints))
    jax.tree.map(np.testing.assert_array_equal, free, masks)


def test_permuting_rows_permutes_results(small, batch):
    order = np.array([3, 0, 5, 1, 4, 2])
    tokens, valid, hints = batch
    out = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints)
    moved = noise.KeyNoise(keys().keys[order])
    again = denoise.denoise(*small, SAMPLER, tokens[order], valid[order], moved, hints=hints[order])
    np.testing.assert_array_equal(np.asarray(out.tokens)[order], again.tokens)
    np.testing.assert_array_equal(np.asarray(out.reveal_step)[order], again.reveal_step)
    np.testing.assert_array_equal(np.asarray(out.steps_needed)[order], again.steps_needed)


def test_draws_do_not_depend_on_the_batch_split(small, batch):
    tokens, valid, hints = batch
    whole = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints)
    for part in (slice(0, 3), slice(3, 6)):
        half = noise.KeyNoise(keys().keys[part])
        out = denoise.denoise(*small, SAMPLER, tokens[part], valid[part], half, hints=hints[part])
        np.testing.assert_array_equal(out.tokens, np.asarray(whole.tokens)[part])


def test_temperatures_above_zero_share_one_program(small, batch):
    tokens, valid, _ = batch
    sampler = denoise.Sampler(length=16, steps=4, block_length=8, temperature=0.8)
    before = denoise._denoise._cache_size()
    cold = denoise.denoise(*small, sampler, tokens, valid, keys())
    hot = denoise.denoise(*small, sampler, tokens, valid, keys(), temperature=3.0)
    third = denoise.Sampler(length=16, steps=4, block_length=8, temperature=3.0)
    same = denoise.denoise(*small, third, tokens, valid, keys(), hints=np.full((BATCH, 16), -1, np.int32))
    assert denoise._denoise._cache_size() == before + 1
    assert np.any(np.asarray(cold.tokens) != np.asarray(hot.tokens))
    np.testing.assert_array_equal(hot.tokens, same.tokens)


def padded(prompt, width, side):
    pad = width - len(prompt)
    tokens = np.pad(prompt, (pad, 0) if side == "left" else (0, pad), constant_values=11)
    valid = np.pad(np.ones(len(prompt), bool), (pad, 0) if side == "left" else (0, pad))
    return tokens, valid


@jax.jit(static_argnames="model")
def canvas_logits(policy, model, row):
    hidden = llada.forward(policy, model, row.tokens, positions=row.positions, valid=row.valid)
    return llada.head_logits(policy, model, hidden[:1, :12])


def test_a_result_does_not_depend_on_padding_or_neighbours(small):
    """The same prompt alone, padded on the left, on the right, and beside a longer one."""
    policy, model = small
    rng = np.random.default_rng(9)
    prompt, longer = rng.integers(0, 38, 4).astype(np.int32), rng.integers(0, 38, 9).astype(np.int32)
    canvas = rng.integers(0, 40, (1, 12)).astype(np.int32)
    settings = [[padded(prompt, 4, "left")]]
    settings += [[padded(prompt, 9, side)] for side in ("left", "right")]
    settings += [[padded(prompt, 9, side), padded(longer, 9, "left")] for side in ("left", "right")]
    results = []
    for rows in settings:
        tokens, valid = (np.stack(column) for column in zip(*rows, strict=True))
        one = noise.KeyNoise(noise.row_keys(jax.random.key(2), "x", 0, np.arange(len(rows))))
        out = denoise.denoise(policy, model, SAMPLER, tokens, valid, one)
        row = canvas_first(jnp.asarray(tokens), jnp.asarray(valid), jnp.repeat(canvas, len(rows), 0))
        results.append((np.asarray(out.tokens)[0], np.asarray(canvas_logits(policy, model, row))))
    for tokens, logits in results[1:]:
        np.testing.assert_array_equal(tokens, results[0][0])
        np.testing.assert_allclose(logits, results[0][1], atol=1e-5, rtol=0)


def test_forwards_without_any_reveal_are_not_run(small, batch):
    """Three steps a block; the fullest row leaves two, one and no mask, so three forwards are run instead of nine."""
    tokens, valid, _ = batch
    sampler = denoise.Sampler(length=12, steps=9, block_length=4, pace="block")
    hints = np.full((BATCH, 12), 5, np.int32)
    hints[0, [0, 3]] = -1
    hints[1, [1]] = -1
    hints[2, [6]] = -1
    out = denoise.denoise(*small, sampler, tokens, valid, None, hints=hints)
    assert int(out.forwards) == 3
    np.testing.assert_array_equal(out.steps_needed, [2, 1, 1, 0, 0, 0])
    apart = denoise.denoise(*small, dataclasses.replace(sampler, pace="row"), tokens, valid, None, hints=hints)
    assert int(apart.forwards) == 2
    np.testing.assert_array_equal(apart.tokens, out.tokens)


def test_rows_at_their_own_pace_write_what_they_write_together(small, batch):
    """Each row is in another block, and leaves it after another step: as many forwards as the slowest row needs."""
    tokens, valid, hints = batch
    apart = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints)
    together = dataclasses.replace(SAMPLER, pace="block")
    out = denoise.denoise(*small, together, tokens, valid, keys(), hints=hints)
    for field in ("tokens", "reveal_step", "steps_needed"):
        np.testing.assert_array_equal(getattr(apart, field), getattr(out, field))
    assert int(apart.forwards) == max(np.asarray(out.steps_needed)) <= int(out.forwards)


def test_the_open_masks_budget_spends_fewer_steps(small, batch):
    """Half of every block given: the schedule still takes all its steps, the labelled option takes half of them."""
    tokens, valid, _ = batch
    hints = np.where(np.arange(16) % 8 < 4, 5, -1).astype(np.int32)[None].repeat(BATCH, 0)
    common = {"length": 16, "steps": 8, "block_length": 8}
    usual = denoise.denoise(*small, denoise.Sampler(**common), tokens, valid, None, hints=hints)
    fewer = denoise.Sampler(**common, step_budget="open_masks")
    out = denoise.denoise(*small, fewer, tokens, valid, None, hints=hints)
    assert (int(usual.forwards), int(out.forwards)) == (8, 4)
    assert not np.any(np.asarray(out.tokens) == MASK)


def script(*rows):
    """want (S, B, K) of SAMPLER: for each row, for each of the three blocks, the token chosen everywhere in it."""
    blocks = np.array(rows).T  # (blocks, B)
    return np.repeat(blocks, SAMPLER.steps_per_block, axis=0)[..., None].repeat(SAMPLER.block_length, 2)


def run_script(small, scripted, want, eos_exit, hints=None):
    count = want.shape[1]
    sampler = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, draw="gumbel", eos_exit=eos_exit)
    tokens, valid = np.ones((count, 3), np.int32), np.ones((count, 3), bool)
    source = noise.RecordedNoise(gumbels=scripted(want))
    return denoise.denoise(*small, sampler, tokens, valid, source, hints=hints)


def test_a_row_whose_block_is_all_eos_is_finished_while_others_go_on(small, scripted):
    want = script((WORD, EOS, WORD), (WORD, WORD, WORD))
    out = run_script(small, scripted, want, "row")
    expected = [[WORD] * 4 + [EOS] * 8, [WORD] * 12]
    np.testing.assert_array_equal(out.tokens, expected)
    np.testing.assert_array_equal(out.steps_needed, [4, 6])
    assert int(out.forwards) == 6
    np.testing.assert_array_equal(np.asarray(out.reveal_step)[0, 8:], [denoise.FILLED] * 4)
    assert np.all(np.asarray(out.reveal_step)[1] >= 0)


def test_eos_exit_stops_the_program_once_all_rows_are_finished(small, scripted):
    want = script((EOS, WORD, WORD), (WORD, EOS, WORD))
    out = run_script(small, scripted, want, "row")
    np.testing.assert_array_equal(out.tokens, [[EOS] * 12, [WORD] * 4 + [EOS] * 8])
    assert int(out.forwards) == 4


def test_batch_exit_waits_for_every_row(small, scripted):
    want = script((EOS, EOS, WORD), (WORD, EOS, WORD))
    out = run_script(small, scripted, want, "batch")
    np.testing.assert_array_equal(out.tokens, [[EOS] * 12, [WORD] * 4 + [EOS] * 8])
    assert int(out.forwards) == 4
    only_one = run_script(small, scripted, script((EOS, EOS, WORD), (WORD, WORD, WORD)), "batch")
    np.testing.assert_array_equal(only_one.tokens, [[EOS] * 8 + [WORD] * 4, [WORD] * 12])


def test_batch_exit_ignores_rows_that_were_given_whole(small, scripted):
    hints = np.array([[-1] * 12, [WORD] * 12], np.int32)
    out = run_script(small, scripted, script((EOS, WORD, WORD), (WORD, WORD, WORD)), "batch", hints)
    np.testing.assert_array_equal(out.tokens, [[EOS] * 12, [WORD] * 12])


def test_without_exit_every_position_is_predicted(small, scripted):
    out = run_script(small, scripted, script((EOS, WORD, EOS)), "none")
    np.testing.assert_array_equal(out.tokens, [[EOS] * 4 + [WORD] * 4 + [EOS] * 4])


def test_hints_behind_an_exit_stay(small, scripted):
    hints = np.full((1, 12), -1, np.int32)
    hints[0, 10] = WORD
    out = run_script(small, scripted, script((EOS, WORD, WORD)), "row", hints)
    np.testing.assert_array_equal(out.tokens, [[EOS] * 10 + [WORD, EOS]])


def test_a_block_of_eos_hints_finishes_nothing(small, scripted):
    hints = np.full((1, 12), -1, np.int32)
    hints[0, :4] = EOS
    out = run_script(small, scripted, script((WORD, WORD, WORD)), "row", hints)
    np.testing.assert_array_equal(out.tokens, [[EOS] * 4 + [WORD] * 8])


def test_a_drawn_mask_token_stays_only_where_the_reference_would_keep_it(small, scripted):
    want = script((WORD, WORD, WORD))
    want[0, 0, 2] = want[1, 0, 2] = MASK  # both steps of the first block
    want[2, 0, :] = MASK  # the first step of the second block only; its second step reveals two of four
    tokens, valid = np.ones((1, 3), np.int32), np.ones((1, 3), bool)
    source = noise.RecordedNoise(gumbels=scripted(want))
    common = {"length": 12, "steps": 6, "block_length": 4, "temperature": 1.0, "draw": "gumbel"}
    kept = denoise.denoise(*small, denoise.Sampler.llada(**common), tokens, valid, source)
    found = np.asarray(kept.tokens)[0]
    assert found[2] == MASK
    assert np.asarray(kept.reveal_step)[0, 2] == denoise.FILLED
    assert (found[4:8] == MASK).sum() == 2
    assert int(kept.forwards) == 6
    ours = denoise.denoise(*small, denoise.Sampler(**common), tokens, valid, source)
    assert not np.any(np.asarray(ours.tokens) == MASK)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_not_drawn_even_when_it_is_the_most_likely(small, batch, temperature):
    tokens, valid, hints = batch
    bias = np.zeros(40, np.float32)
    bias[MASK] = 100.0
    out = denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints, logit_bias=bias, temperature=temperature)
    assert not np.any(np.asarray(out.tokens) == MASK)


def test_shapes_that_do_not_fit_are_named(small, batch):
    tokens, valid, hints = batch
    with pytest.raises(UserError, match=r"prompt_valid \(6, 4\)"):
        denoise.denoise(*small, SAMPLER, tokens, valid[:, :4], keys())
    with pytest.raises(UserError, match=r"hints has shape \(6, 11\), expected .*\(6, 12\)"):
        denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=hints[:, :11])
    with pytest.raises(UserError, match="max_sequence_length 64"):
        denoise.denoise(*small, denoise.Sampler(length=60, steps=60, block_length=60), tokens, valid, None)
    with pytest.raises(UserError, match="no noise"):
        denoise.denoise(*small, SAMPLER, tokens, valid, None)
    with pytest.raises(UserError, match=r"logit_bias has shape \(7,\), expected \(40,\)"):
        denoise.denoise(*small, SAMPLER, tokens, valid, keys(), logit_bias=np.zeros(7, np.float32))
    with pytest.raises(UserError, match="hints holds token 40"):
        denoise.denoise(*small, SAMPLER, tokens, valid, keys(), hints=np.where(hints < 0, 40, hints))
    with pytest.raises(UserError, match=r"temperature is -0\.5"):
        denoise.denoise(*small, SAMPLER, tokens, valid, keys(), temperature=-0.5)


def test_only_the_active_block_is_projected_and_weights_are_cast_outside_the_loop(small, batch, equations):
    tokens, valid, hints = batch
    policy, model = small
    half = llada.Model(model.config, llada.Compute(dtype="bfloat16"))

    def run(policy):
        return denoise.denoise(policy, half, SAMPLER, tokens, valid, keys(), hints=hints)

    found = list(equations(jax.make_jaxpr(run)(policy).jaxpr))
    weights = {leaf.shape for leaf in jax.tree.leaves(policy)}
    shapes = {value.aval.shape for equation, _ in found for value in equation.outvars} - weights
    assert max((s for s in shapes if len(s) == 3 and s[-1] == 40), key=np.prod) == (BATCH, SAMPLER.block_length, 40)
    inside = [
        equation for equation, path in found if "while" in path and equation.primitive.name == "convert_element_type"
    ]
    assert inside
    assert not [equation for equation in inside if equation.invars[0].aval.shape in weights]


def test_the_head_sees_only_as_many_positions_as_the_fullest_row_has_masks(small, batch, equations):
    tokens, valid, _ = batch
    sampler = denoise.Sampler(length=32, steps=16, block_length=16)

    def run(policy):
        return denoise.denoise(policy, small[1], sampler, tokens, valid, None)

    found = equations(jax.make_jaxpr(run)(small[0]).jaxpr)
    heads = [eq.outvars[0].aval.shape for eq, path in found if eq.primitive.name == "dot_general" and "cond" in path]
    assert heads == [(BATCH * width, 40) for width in (4, 8, 12, 16)]
