"""The compiled loop against what the reference samplers saw and did at every step."""

import numpy as np
import pytest

from igpo_jax.diffusion import denoise, noise

GENERATE = (
    "pure_g16_s16_b16",
    "block_g32_s32_b8",
    "fewsteps_g32_s16_b16",
    "remainder_g24_s9_b8",
    "remainder_g20_s7_b20",
    "onestep_g8_s1_b8",
    "cfg1.5_g16_s8_b8",
    "leftpad_g16_s8_b8",
    "cfg0.7_leftpad_g12_s6_b12",
    "eos_inf_g16_s8_b16",
    "conf_eos_inf_g16_s8_b16",
    "random_g16_s8_b8",
    "temp0.7_g8_s4_b8",
)
INPAINT = (
    "nohint_g32_s16_b8",
    "hint_g24_s9_b8",
    "hint_remainder_g20_s6_b10",
    "hint_fullblock_g24_s12_b8",
    "hint_alone_in_block_g16_s8_b8",
    "hint_cfg1.2_g16_s8_b8",
    "hint_early_exit_g24_s12_b8",
    "official_chunks_g64_s32_b16",
    "official_chunks_long_g48_s24_b16",
)


def settings(case):
    return {
        "length": int(case["gen_length"]),
        "steps": int(case["steps"]),
        "block_length": int(case["block_length"]),
        "cfg_scale": float(case["cfg_scale"]),
        "record": True,
    }


def blocks_of(values, case, prompt_length):
    """(S, B, T, ...) -> (S, B, K, ...), each step's own block."""
    width = int(case["block_length"])
    starts = prompt_length + case["block"] * width
    return np.stack([step[:, start : start + width] for step, start in zip(values, starts, strict=True)])


def recorded(case, prompt_length):
    if "draws" not in case:
        return None
    draws = blocks_of(case["draws"], case, prompt_length)
    if case["remasking"] == "random":
        return noise.RecordedNoise(uniforms=draws.astype(np.float32))
    return noise.RecordedNoise(gumbels=(-np.log(-np.log(draws))).astype(np.float32))


def check_against(out, case, prompt_length):
    """Every step's tokens, choices, confidences and selections, and what follows from them."""
    ran = case["block"] * (int(case["steps"]) * int(case["block_length"]) // int(case["gen_length"]))
    ran = ran + case["step_in_block"]
    assert int(out.forwards) == len(ran)
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(out.trace.ran)), ran)
    np.testing.assert_array_equal(np.asarray(out.trace.tokens)[ran], case["x_after"][..., prompt_length:])
    masked = blocks_of(case["x_before"], case, prompt_length) == int(case["mask_id"])
    choice = np.asarray(out.trace.choice)[ran]
    np.testing.assert_array_equal(choice[masked], blocks_of(case["x0"], case, prompt_length)[masked])
    revealed = np.asarray(out.trace.revealed)[ran]
    np.testing.assert_array_equal(revealed, blocks_of(case["transfer"], case, prompt_length))
    np.testing.assert_array_equal(revealed.sum(2), case["k"])
    seen = blocks_of(case["confidence"], case, prompt_length)[case["k"] > 0]
    np.testing.assert_allclose(np.asarray(out.trace.confidence)[ran][case["k"] > 0], seen, atol=3e-5, rtol=0)
    np.testing.assert_array_equal(np.asarray(out.tokens), case["final"][:, prompt_length:])
    last = np.where(case["transfer"], ran[:, None, None], -1).max(0)[:, prompt_length:]
    reveal_step = np.asarray(out.reveal_step)
    np.testing.assert_array_equal(np.where(reveal_step < 0, -1, reveal_step), last)
    np.testing.assert_array_equal(np.asarray(out.steps_needed), (case["k"] > 0).sum(0))


@pytest.mark.parametrize("name", GENERATE)
def test_generate(tiny, golden, name):
    case = golden("generate")[name]
    policy, model = tiny
    tokens = case["prompt"]
    valid = case.get("attention_mask", np.ones_like(tokens)).astype(bool)
    sampler = denoise.Sampler.llada(
        **settings(case),
        temperature=float(case["temperature"]),
        selection=str(case["remasking"]),
        suppress_eos_logits=name.startswith("eos_inf"),
        suppress_eos_confidence=name.startswith("conf_eos_inf"),
        eot_token_id=int(case.get("eot_id", -1)),
    )
    draws = recorded(case, tokens.shape[1])
    out = denoise.denoise(policy, model, sampler, tokens, valid, draws, logit_bias=case.get("logit_bias"))
    check_against(out, case, tokens.shape[1])


@pytest.mark.parametrize("name", INPAINT)
def test_inpaint(tiny, golden, name):
    case = golden("inpaint")[name]
    policy, model = tiny
    tokens = case["prompt"]
    length = tokens.shape[1]
    hints = np.where(case["fixed_positions"], case["first_input"], -1)[:, length:].astype(np.int32)
    sampler = denoise.Sampler.official(**settings(case), temperature=0.0)
    out = denoise.denoise(
        policy, model, sampler, tokens, np.ones_like(tokens, bool), None, hints=hints, logit_bias=case.get("logit_bias")
    )
    check_against(out, case, length)
    given = hints >= 0
    np.testing.assert_array_equal(np.asarray(out.tokens)[given], hints[given])
    np.testing.assert_array_equal(np.asarray(out.reveal_step) == denoise.HINT, given)


def test_every_case_is_tested(golden):
    assert set(GENERATE) == set(golden("generate"))
    assert set(INPAINT) == set(golden("inpaint"))
