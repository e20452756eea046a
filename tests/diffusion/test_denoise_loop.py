"""The compiled loop agrees token for token with the loop in plain Python (conftest.py), on random small models."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion import denoise, draws, noise
from igpo_jax.diffusion.sampler import PACES

BATCH, WIDTH, VOCAB, EOS = 4, 5, 40, 39

#: A program each, so that examples mostly vary what needs no compilation.
SAMPLERS = (
    denoise.Sampler(length=12, steps=9, block_length=4),
    denoise.Sampler(length=8, steps=3, block_length=8, eos_exit="none", cfg_scale=0.8),
    denoise.Sampler(length=12, steps=4, block_length=6, suppress_eos_confidence=True, step_budget="open_masks"),
    denoise.Sampler(length=10, steps=4, block_length=5, selection="random", suppress_eos_logits=True),
    denoise.Sampler(length=12, steps=12, block_length=4, temperature=0.9, draw="gumbel"),
    denoise.Sampler(length=12, steps=8, block_length=6, temperature=1.3, step_budget="open_masks", draw="gumbel"),
    denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, eos_exit="batch", forbid_mask=False),
    denoise.Sampler(length=8, steps=4, block_length=4, temperature=0.7, eos_exit="none", selection="random"),
    denoise.Sampler(length=32, steps=16, block_length=16, temperature=0.8, cfg_scale=0.3),
)


@dataclasses.dataclass(frozen=True)
class Example:
    sampler: denoise.Sampler
    pace: str
    seed: int
    hint_share: tuple[float, ...]  # of each row
    hint_with_eos: bool
    eos_from: tuple[int, ...]  # block from which the noise makes each row choose EOS


def per_row(values):
    return st.tuples(*[st.sampled_from(values)] * BATCH)


EXAMPLES = st.builds(
    Example,
    sampler=st.sampled_from(SAMPLERS),
    pace=st.sampled_from(PACES),
    seed=st.integers(0, 2**31),
    hint_share=per_row([0.0, 0.3, 0.8, 1.0]),
    hint_with_eos=st.booleans(),
    eos_from=st.one_of(per_row([0, 1]), per_row([0, 1, 9])),
)


def inputs(example, prompts):
    """Arguments of the loop: prompts, hints, recorded Gumbel values, uniforms and token uniforms, logit bias."""
    rng = np.random.default_rng(example.seed)
    sampler = example.sampler
    tokens, valid = prompts(rng, BATCH, WIDTH)
    hinted = rng.uniform(size=(BATCH, sampler.length)) < np.array(example.hint_share)[:, None]
    words = np.full(hinted.shape, EOS) if example.hint_with_eos else rng.integers(0, 38, hinted.shape)
    shape = (sampler.steps, BATCH, sampler.block_length)
    gumbels = rng.gumbel(size=(*shape, VOCAB)).astype(np.float32)
    pulled = np.arange(sampler.steps)[:, None] // sampler.steps_per_block >= np.array(example.eos_from)
    gumbels[..., EOS] += 100 * pulled[..., None]
    uniforms = rng.uniform(size=shape).astype(np.float32)
    pairs = rng.uniform(size=(*shape, 2)).astype(np.float32)
    pairs[pulled] = np.nextafter(np.float32(1), np.float32(0))  # EOS is the last token
    hints = np.where(hinted, words, -1).astype(np.int32)
    return tokens, valid, hints, gumbels, uniforms, pairs, rng.normal(size=VOCAB).astype(np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=EXAMPLES)
def test_equals_the_plain_loop(small, prompts, plain_loop, assert_same, example):
    policy, model = small
    sampler = dataclasses.replace(example.sampler, pace=example.pace)
    tokens, valid, hints, gumbels, uniforms, pairs, bias = inputs(example, prompts)
    given_draws = (sampler.temperature, gumbels, uniforms, bias, pairs)
    loop = plain_loop(policy, model, sampler, tokens, valid, hints, *given_draws)
    assume(loop.gap > 1e-5)
    source = noise.RecordedNoise(gumbels, uniforms, pairs)
    assert_same(denoise.denoise(policy, model, sampler, tokens, valid, source, hints=hints, logit_bias=bias), loop)


@pytest.mark.parametrize("draw", draws.DRAWS)
def test_key_noise_is_what_the_plain_loop_gets_from_the_same_keys(small, prompts, plain_loop, assert_same, draw):
    policy, model = small
    tokens, valid = prompts(np.random.default_rng(8), BATCH, WIDTH)
    sampler = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0, draw=draw)
    source = noise.KeyNoise(noise.row_keys(jax.random.key(4), "rollout", 2, np.arange(BATCH)))
    gumbels = np.stack([source.gumbel(step, (BATCH, 4, VOCAB)) for step in range(sampler.steps)])
    pairs = np.stack([source.token_uniforms(step, (BATCH, 4)) for step in range(sampler.steps)])
    loop = plain_loop(policy, model, sampler, tokens, valid, None, 1.0, gumbels, pairs=pairs)
    assert_same(denoise.denoise(policy, model, sampler, tokens, valid, source), loop)
