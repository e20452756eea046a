"""Every golden case through the command, from disk; and what the command says to arrays that will not do."""

import json
import shutil

import numpy as np
import pytest

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
HINTS = tuple(f"hint{number:02d}" for number in range(11))


def check(out, case):
    """Every step's tokens, choices, selections and confidences, in the order of the input row."""
    for name in ("final", "x_after", "transfer", "k", "block", "step_in_block"):
        np.testing.assert_array_equal(out[name], case[name], err_msg=name)
    # The reference also predicts blocks to the right, of which it then uses nothing.
    width, block = case["prompt"].shape[1], int(case["block_length"])
    for ours, theirs, number in zip(out["x0"], case["x0"], case["block"], strict=True):
        until = width + (number + 1) * block
        np.testing.assert_array_equal(ours[:, :until], theirs[:, :until])
    looked_at = case["k"] > 0  # a row that reveals nothing was not looked at by the reference
    np.testing.assert_allclose(out["confidence"][looked_at], case["confidence"][looked_at], atol=3e-5, rtol=0)
    assert out["final"].dtype == out["x_after"].dtype == np.int32
    assert out["confidence"].dtype == np.float32
    _, _, places = np.nonzero(case["transfer"])
    assert ((out["reveal_step"] >= 0).sum(), places.size) == (places.size, case["k"].sum())


def given(case, *names):
    return {name: case[name] for name in ("prompt", "attention_mask", "logit_bias", *names) if name in case}


def test_every_case_is_replayed(golden):
    assert set(GENERATE) == set(golden("generate"))
    assert set(INPAINT) == set(golden("inpaint"))
    assert set(HINTS) == set(golden("hints"))


@pytest.mark.parametrize("name", GENERATE)
def test_generate(arrays, golden, golden_dir, golden_flags, name):
    case = golden("generate")[name]
    flags = ["--preset", "llada", *golden_flags(case), "--temperature", case["temperature"]]
    flags += ["--selection", case["remasking"]]
    flags += ["--suppress-eos-logits"] * name.startswith("eos_inf")
    if name.startswith("conf_eos_inf"):
        flags += ["--suppress-eos-confidence", "--eot-id", case["eot_id"]]
    check(arrays("generate", golden_dir / "tiny_llada", given(case, "draws"), *flags), case)


@pytest.mark.parametrize("name", INPAINT)
def test_inpaint(arrays, golden, golden_dir, golden_flags, name):
    case = golden("inpaint")[name]
    flags = ["--preset", "official", *golden_flags(case), "--temperature", 0]
    known, width = given(case), case["prompt"].shape[1]
    if "answer" in case:
        # The command places the hints itself, from the same solution and seed.
        known["trace"] = case["answer"]
        flags += ["--hint-ratio", *case["inpaint_ratio"], "--hint-seed", case["hint_seed"]]
        flags += ["--chunk-min", case["min_chunk_size"], "--chunk-max", case["max_chunk_size"]]
    else:
        known["hints"] = np.where(case["fixed_positions"], case["first_input"], -1)[:, width:]
    out = arrays("generate", golden_dir / "tiny_llada", known, *flags)
    check(out, case)
    np.testing.assert_array_equal(out["first_input"], case["first_input"])
    np.testing.assert_array_equal(out["fixed_positions"], case["fixed_positions"])
    np.testing.assert_array_equal(out["reveal_step"] == -1, case["fixed_positions"][:, width:])


@pytest.mark.parametrize("name", HINTS)
def test_hints(arrays, golden, long_rows, name):
    case = golden("hints")[name]
    length = case["gen_length"]
    flags = ["--preset", "official", "--temperature", 0, "--length", length, "--steps", 1, "--block-length", length]
    flags += ["--hint-ratio", case["inpaint_ratio"], "--hint-seed", case["seed"]]
    flags += ["--chunk-min", case["min_chunk_size"], "--chunk-max", case["max_chunk_size"]]
    flags += ["--max-spacing", case["max_spacing"], *["--free-last-chunk"] * (not case["last_chunk"])]
    out = arrays("generate", long_rows, {"prompt": case["question"], "trace": case["answer"]}, *flags)
    np.testing.assert_array_equal(out["first_input"], case["input_sequence"])
    np.testing.assert_array_equal(~out["fixed_positions"], case["target_mask"])
    np.testing.assert_array_equal(out["final"][out["fixed_positions"]], case["input_sequence"][out["fixed_positions"]])


def test_an_imported_checkpoint_gives_the_same(arrays, golden, golden_flags, imported):
    case = golden("generate")["leftpad_g16_s8_b8"]
    flags = ["--preset", "llada", *golden_flags(case)]
    check(arrays("generate", imported["tiny_llada"], given(case), *flags), case)


def test_devices_that_share_the_model_give_the_same(arrays, golden, golden_dir, golden_flags):
    case = golden("inpaint")["hint_g24_s9_b8"]
    known = given(case) | {"hints": np.where(case["fixed_positions"], case["first_input"], -1)[:, -24:]}
    flags = ["--preset", "official", *golden_flags(case), "--temperature", 0, "--tensor", 2]
    check(arrays("generate", golden_dir / "tiny_llada", known, *flags), case)


def test_draws_follow_the_seed_and_not_the_batch(arrays, golden_dir):
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 500, (2, 6)).astype(np.int64)
    flags = ["--length", 8, "--steps", 4, "--block-length", 8, "--temperature", 1, "--eos-exit", "none"]
    first = arrays("generate", golden_dir / "tiny_llada", {"prompt": prompt}, *flags, "--seed", 5)
    again = arrays("generate", golden_dir / "tiny_llada", {"prompt": prompt}, *flags, "--seed", 5)
    other = arrays("generate", golden_dir / "tiny_llada", {"prompt": prompt}, *flags, "--seed", 6)
    alone = arrays("generate", golden_dir / "tiny_llada", {"prompt": prompt[:1]}, *flags, "--seed", 5)
    np.testing.assert_array_equal(first["final"], again["final"])
    np.testing.assert_array_equal(first["final"][:1], alone["final"])
    assert (first["final"] != other["final"]).any()
    assert first["x_after"].shape == (4, 2, 14) and (first["final"] != 500).all()


def test_arrays_that_nobody_reads_are_named(run, golden_dir, tmp_path):
    np.savez(tmp_path / "in.npz", prompt=np.ones((1, 3), int), promt_mask=np.ones((1, 3), int))
    places = (
        "--checkpoint",
        golden_dir / "tiny_llada",
        "--tokens",
        tmp_path / "in.npz",
        "--output",
        tmp_path / "o.npz",
    )
    done = run("generate", *places, "--length", 4, "--steps", 1, "--block-length", 4)
    assert done.code == 0
    assert done.err.strip() == f"{tmp_path / 'in.npz'}: arrays that are not read: promt_mask"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "o.npz"]


ONE = np.ones((2, 3), np.int32)
FLAGS = ("--length", "8", "--steps", "4", "--block-length", "4")


@pytest.mark.parametrize(
    ("known", "flags", "sentence"),
    [
        ({}, (), "has no array 'prompt', expected one of shape (B, P); it holds nothing"),
        ({"promt": ONE}, (), "has no array 'prompt', expected one of shape (B, P); it holds promt"),
        ({"prompt": ONE[0]}, (), "'prompt' has shape (3,), expected (B, P), none of them 0"),
        ({"prompt": ONE[:, :0]}, (), "'prompt' has shape (2, 0), expected (B, P), none of them 0"),
        ({"prompt": ONE * 1.0}, (), "'prompt' has dtype float64, expected integers"),
        ({"prompt": ONE * 512}, (), "'prompt' has token 512, expected 0 to 511"),
        ({"prompt": -ONE}, (), "'prompt' has token -1, expected 0 to 511"),
        (
            {"prompt": ONE, "attention_mask": ONE[:, :2]},
            (),
            "'attention_mask' has shape (2, 2), expected (B, P) = (2, 3)",
        ),
        (
            {"prompt": ONE, "attention_mask": ONE * 2},
            (),
            "'attention_mask' has dtype int32, 2 to 2, expected integers 0",
        ),
        ({"prompt": ONE, "attention_mask": ONE * [[1], [0]]}, (), "'attention_mask' has no 1 in row 1"),
        ({"prompt": ONE, "hints": np.full((2, 9), -1)}, (), "--length is 8, but the hints are for a canvas of 9"),
        ({"prompt": ONE, "hints": np.full((1, 8), -1)}, (), "'hints' has shape (1, 8), expected (B, G)"),
        ({"prompt": ONE, "hints": np.full((2, 8), -2)}, (), "'hints' has token -2, expected -1 or 0 to 511"),
        ({"prompt": ONE, "trace": ONE[0]}, (), "choose --hint-placement official, or pass 'hints'"),
        ({"prompt": ONE, "trace": ONE[0]}, ("--preset", "official"), "--hint-ratio is missing"),
        (
            {"prompt": ONE, "trace": ONE[0], "hints": np.full((2, 8), -1)},
            (),
            "has both 'hints' and 'trace'; leave one of them out",
        ),
        (
            {"prompt": ONE, "trace": ONE[0]},
            ("--preset", "official", "--hint-ratio", "0.5", "0.5", "0.5"),
            "--hint-ratio has 3 values for 2 rows",
        ),
        (
            {"prompt": ONE, "trace": ONE[0]},
            ("--preset", "official", "--hint-ratio", "0.5", "--chunk-min", "20"),
            "--chunk-min and chunk-max are 20 and 10",
        ),
        ({"prompt": ONE, "draws": np.ones((4, 2, 11))}, (), "nothing is drawn at --temperature 0"),
        (
            {"prompt": ONE, "draws": np.ones((3, 2, 11))},
            ("--selection", "random"),
            "'draws' has shape (3, 2, 11), expected (steps, B, P + G) or (steps, B, P + G, V) = (4, 2, 11) or",
        ),
        ({"prompt": ONE, "logit_bias": np.zeros(7)}, (), "'logit_bias' has shape (7,), expected (V,) = (512)"),
        ({"prompt": ONE}, ("--length", "10"), "--length is 10, which blocks of --block-length 4 do not divide"),
        ({"prompt": ONE}, ("--steps", "1"), "--steps is 1, fewer than the 2 blocks"),
        ({"prompt": ONE}, ("--cfg", "-1"), "--cfg is -1.0, expected 0 or more"),
        ({"prompt": ONE}, ("--tensor", "3"), "--tensor is 3, but the model's n_kv_heads is 4; give a divisor"),
        ({"prompt": ONE}, ("--tensor", "99"), "--tensor is 99, but there are 8 devices"),
        ({"prompt": np.ones((1, 250), int)}, (), "make rows of 258, longer than model.max_sequence_length 256"),
    ],
)
def test_arrays_that_will_not_do(refused, golden_dir, tmp_path, known, flags, sentence):
    np.savez(tmp_path / "in.npz", **known)
    places = ("--tokens", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert sentence in refused("generate", "--checkpoint", golden_dir / "tiny_llada", *places, *FLAGS, *flags)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--tokens", "no.npz", "--output", "o.npz"), "--tokens names no.npz, which does not exist"),
        (("--tokens", "text.npz", "--output", "o.npz"), "text.npz is not an .npz file of plain arrays"),
        (("--tokens", "pickled.npz", "--output", "o.npz"), "pickled.npz is not an .npz file of plain arrays"),
        (("--tokens", "one.npy", "--output", "o.npz"), "one.npy is not an .npz file of plain arrays"),
        (("--tokens", "in.npz"), "--tokens and --output go together"),
        (
            ("--tokens", "in.npz", "--output", "no/o.npz"),
            "--output no/o.npz lies in a folder that does not exist; make no",
        ),
        (("--tokens", "in.npz", "--output", "."), "--output . is a folder"),
        (("--tokens", "in.npz", "--output", "o.npz", "--prompt", "x"), "exactly one of --prompt TEXT, --chat, or"),
        (("--tokens", "in.npz", "--output", "o.npz", "--html", "x"), "--html is for one --prompt; leave it out"),
        ((), "exactly one of --prompt TEXT, --chat, or --tokens"),
        (("--stpes", "3"), "--stpes is not a flag of this command (did you mean '--steps'?)"),
        (("more",), "'more' is not a flag"),
        (("--steps", "x"), "argument --steps: invalid int value: 'x'"),
        (("--prompt", "-x"), "a value that begins with '-' is written as in --prompt='-3 + 5'"),
        (("--selection", "best"), "argument --selection: invalid choice: 'best'"),
    ],
)
def test_a_command_line_that_will_not_do(refused, golden_dir, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickled.npz", prompt=np.array([{}], dtype=object))
    np.save(tmp_path / "one.npy", ONE)
    assert sentence in refused("generate", "--checkpoint", golden_dir / "tiny_llada", *flags)


def test_folders_that_are_no_checkpoint(refused, golden_dir, tmp_path):
    tokens = ("--tokens", "in.npz", "--output", "o.npz")
    assert "is not a folder" in refused("generate", "--checkpoint", tmp_path / "none", *tokens)
    (tmp_path / "notes.txt").touch()
    assert "is not a checkpoint (it holds notes.txt)" in refused("generate", "--checkpoint", tmp_path, *tokens)
    assert "--checkpoint" in refused("generate", "--prompt", "x")
    no_words = refused("generate", "--checkpoint", golden_dir / "tiny_llada", "--prompt", "x")
    assert "tiny_llada has no tokenizer files, which text needs" in no_words


def test_a_tokenizer_of_another_model_is_refused(refused, golden_dir, chat_dir, tmp_path):
    shutil.copytree(golden_dir / "tiny_llada", tmp_path / "model")
    shutil.copy(chat_dir / "tokenizer.json", tmp_path / "model")
    shutil.copy(chat_dir / "tokenizer_config.json", tmp_path / "model")
    found = refused("generate", "--checkpoint", tmp_path / "model", "--prompt", "x")
    mask = json.loads((chat_dir / "config.json").read_text())["mask_token_id"]
    assert f"has mask_token_id {mask}, but config.json says 500" in found
