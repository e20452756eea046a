"""The compiled loop agrees token for token with the loop in plain Python (conftest.py), on random small models."""

import jax
import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion import denoise, noise

BATCH, WIDTH, VOCAB = 4, 5, 40

#: A program each, so that examples mostly vary what needs no compilation.
SAMPLERS = (
    denoise.Sampler(length=12, steps=9, block_length=4),
    denoise.Sampler(length=12, steps=6, block_length=6, eos_exit="batch", forbid_mask=False),
    denoise.Sampler(length=8, steps=3, block_length=8, eos_exit="none", cfg_scale=0.8),
    denoise.Sampler(length=12, steps=12, block_length=4, temperature=0.9),
    denoise.Sampler(length=12, steps=8, block_length=6, temperature=1.3, step_budget="open_masks"),
    denoise.Sampler(length=10, steps=4, block_length=5, selection="random", suppress_eos_logits=True),
    denoise.Sampler(length=12, steps=4, block_length=6, suppress_eos_confidence=True, step_budget="open_masks"),
)


@st.composite
def examples(draw):
    sampler = draw(st.sampled_from(SAMPLERS))
    seed = draw(st.integers(0, 2**31))
    hint_share = draw(st.lists(st.sampled_from([0.0, 0.3, 0.8, 1.0]), min_size=BATCH, max_size=BATCH))
    eos_pull = draw(st.sampled_from([0.0, 6.0, 40.0]))
    return sampler, seed, np.array(hint_share), eos_pull


def draws_for(sampler, rng):
    shape = (sampler.steps, BATCH, sampler.block_length)
    gumbels = rng.gumbel(size=(*shape, VOCAB)).astype(np.float32)
    return gumbels, rng.uniform(size=shape).astype(np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=examples())
def test_equals_the_plain_loop(small, prompts, plain_loop, assert_same, example):
    sampler, seed, hint_share, eos_pull = example
    policy, model = small
    rng = np.random.default_rng(seed)
    tokens, valid = prompts(rng, BATCH, WIDTH)
    hinted = rng.uniform(size=(BATCH, sampler.length)) < hint_share[:, None]
    hints = np.where(hinted, rng.integers(30, VOCAB - 2, hinted.shape), -1).astype(np.int32)
    hints[:, : sampler.block_length] = np.where(
        hinted[:, : sampler.block_length] & (eos_pull > 0), model.config.eos_token_id, hints[:, : sampler.block_length]
    )
    gumbels, uniforms = draws_for(sampler, rng)
    bias = np.zeros(VOCAB, np.float32)
    bias[model.config.eos_token_id] = eos_pull
    loop = plain_loop(policy, model, sampler, tokens, valid, hints, sampler.temperature, gumbels, uniforms, bias)
    assume(loop.gap > 1e-5)
    out = denoise.denoise(
        policy, model, sampler, tokens, valid, noise.RecordedNoise(gumbels, uniforms), hints=hints, logit_bias=bias
    )
    assert_same(out, loop)


def test_key_noise_is_what_the_plain_loop_gets_from_the_same_keys(small, prompts, plain_loop, assert_same):
    policy, model = small
    tokens, valid = prompts(np.random.default_rng(8), BATCH, WIDTH)
    sampler = denoise.Sampler(length=12, steps=6, block_length=4, temperature=1.0)
    source = noise.KeyNoise(noise.row_keys(jax.random.key(4), "rollout", 2, np.arange(BATCH)))
    gumbels = np.stack([source.gumbel(step, (BATCH, 4, VOCAB)) for step in range(sampler.steps)])
    loop = plain_loop(policy, model, sampler, tokens, valid, None, 1.0, gumbels)
    assert_same(denoise.denoise(policy, model, sampler, tokens, valid, source), loop)
