"""Logits and likelihood bounds through the command, from disk, against the golden numbers."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
QUESTION = "Mia has 427 dollars. Then she finds a ten. How many dollars does Mia have?"
FORWARD = {
    "rand_b2_t16": "tiny_llada",
    "masked_b3_t33": "tiny_llada",
    "long_b1_t96": "tiny_llada",
    "single_b1_t1": "tiny_llada",
    "allmask_b1_t20": "tiny_llada",
    "padded_b3_t24": "tiny_llada",
    "bf16_weights_f32_compute": "tiny_llada_sharded",
    "bf16_weights_bf16_compute": "tiny_llada_sharded",
}


@pytest.mark.parametrize("kind", ["source", "imported"])
@pytest.mark.parametrize("name", FORWARD)
def test_logits(arrays, golden, golden_dir, imported, name, kind):
    assert set(FORWARD) == set(golden("forward"))
    case = golden("forward")[name]
    folder = imported[FORWARD[name]] if kind == "imported" else golden_dir / FORWARD[name]
    flags = ["--dtype", "bfloat16"] if name.endswith("bf16_compute") else []
    given = {key: case[key] for key in ("input_ids", "attention_mask") if key in case}
    out = arrays("score", folder, given, "--logits", "--batch", 2, *flags)
    assert out["logits"].dtype == np.float32 and out["logits"].shape == case["logits"].shape
    difference = out["logits"] - case["logits"]
    if flags:
        assert np.sqrt(np.mean(difference**2)) < 0.1
        assert np.abs(difference).max() > 1e-3  # it did compute in bfloat16
    else:
        assert np.abs(difference).max() < 1e-4


def test_logits_of_a_model_shared_by_devices(arrays, golden, golden_dir):
    case = golden("forward")["padded_b3_t24"]
    given = {key: case[key] for key in ("input_ids", "attention_mask")}
    out = arrays("score", golden_dir / "tiny_llada", given, "--logits", "--tensor", 2)
    np.testing.assert_allclose(out["logits"], case["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", ["loglik", "loglik_cfg0.5"])
def test_recorded_masks_give_the_reference_s_bound(arrays, golden, golden_dir, name, weights):
    case = golden("loglik")[name]
    given = {key: case[key] for key in ("prompt", "answer", "perturbed", *["p_mask"] * weights)}
    out = arrays("score", golden_dir / "tiny_llada", given, "--cfg", case["cfg_scale"])
    assert out["log_likelihood"] == pytest.approx(float(case["log_likelihood"]), abs=1e-4)
    assert out["samples"].shape == (12,) and out["samples"].mean() == out["log_likelihood"]


def test_drawn_masks_come_near_and_follow_the_seed(arrays, golden, golden_dir):
    case = golden("loglik")["loglik"]
    given = {key: case[key] for key in ("prompt", "answer")}
    flags = ("--mc-num", 256, "--batch", 32)
    out = arrays("score", golden_dir / "tiny_llada", given, *flags)
    again = arrays("score", golden_dir / "tiny_llada", given, *flags)
    other = arrays("score", golden_dir / "tiny_llada", given, *flags, "--seed", 1)
    np.testing.assert_array_equal(out["samples"], again["samples"])
    assert out["log_likelihood"] != other["log_likelihood"]
    spread = out["samples"].std() / math.sqrt(256) + out["samples"].std() / math.sqrt(12)
    assert abs(out["log_likelihood"] - float(case["log_likelihood"])) < 4 * spread


@pytest.fixture
def pairs(tmp_path):
    def write(*rows) -> pathlib.Path:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "pairs.jsonl"

    return write


def scored(run, folder, file, *flags):
    done = run("score", "--checkpoint", folder, "--input", file, "--mc-num", 32, "--batch", 8, *flags)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_lines_in_and_out(run, run_dir, pairs, tmp_path):
    rows = [
        {"prompt": QUESTION, "answer": "finds ten 437\n#### 437", "id": 7, "bound": "old"},
        {"prompt": QUESTION, "answer": "4"},
    ]
    found = scored(run, run_dir, pairs(*rows))
    assert found[0] | {"prompt": QUESTION, "id": 7, "tokens": 10, "samples": 32} == found[0]
    assert found[0]["bound"] < 0 < found[0]["error"]
    assert (found[1]["tokens"], found[1]["samples"], found[1]["error"]) == (1, 1, None)
    # The same pair has the same score wherever it stands, and another one with another seed.
    assert scored(run, run_dir, pairs(*rows[::-1]))[1]["bound"] == found[0]["bound"]
    assert scored(run, run_dir, pairs(*rows), "--seed", 3)[0]["bound"] != found[0]["bound"]
    assert scored(run, run_dir, pairs(*rows), "--cfg", 0.5)[0]["bound"] != found[0]["bound"]
    out = tmp_path / "out.jsonl"
    assert scored(run, run_dir, pairs(*rows), "--output", out) == []
    assert [json.loads(line) for line in out.read_text().splitlines()] == found


def test_templates_are_applied_unless_raw(run, chat_dir, pairs, tmp_path):
    from igpo_jax.data.tokenizers import load_tokenizer

    words = load_tokenizer(chat_dir)
    file = pairs({"prompt": "hello  ", "answer": "you"})
    with_template, raw = scored(run, chat_dir, file), scored(run, chat_dir, file, "--raw")
    assert with_template[0]["tokens"] == 3 and with_template[0]["bound"] != raw[0]["bound"]
    # Raw text is encoded as a whole, and blanks before the answer belong to it.
    assert raw[0]["tokens"] == 5
    from igpo_jax.commands.checkpoint import open_checkpoint
    from igpo_jax.commands.text_scoring import tokens_of

    opened = open_checkpoint(str(chat_dir))
    prompt, answer = tokens_of("hello  ", "you", opened, True, "line 1")
    assert (words.decode(prompt), words.decode(answer)) == ("hello", "  you")
    prompt, answer = tokens_of("hello", "you", opened, False, "line 1")
    assert prompt == words.encode_prompt("hello") and words.decode(answer) == "you"


def test_a_pipe_in_and_a_pipe_out(run_dir):
    command = [sys.executable, "-m", "igpo_jax.score", "--checkpoint", str(run_dir), "--mc-num", "4", "--batch", "4"]
    line = json.dumps({"prompt": QUESTION, "answer": "finds ten 437"})
    done = subprocess.run(command, cwd=ROOT, input=f"{line}\n\n", capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stderr == ""
    (found,) = map(json.loads, done.stdout.splitlines())
    assert (found["tokens"], found["samples"]) == (5, 4)


@pytest.mark.parametrize(
    ("text", "flags", "sentence"),
    [
        ('{"prompt": "Mia"}', (), "pairs.jsonl:1 has no text 'answer' (found: ['prompt']), expected prompt and answer"),
        ("\n[1]", (), "pairs.jsonl:2 has no text 'prompt' (found: list)"),
        ("\n\nno", (), "pairs.jsonl:3 is not JSON"),
        ('{"prompt": "", "answer": "4"}', (), "pairs.jsonl:1: the prompt is empty"),
        ('{"prompt": "Mia", "answer": " "}', (), "pairs.jsonl:1: the answer is empty"),
        ('{"prompt": "Mia", "answer": "pear"}', (), "pairs.jsonl:1: the tokenizer of"),
        (
            json.dumps({"prompt": "Mia", "answer": "4" * 96}),
            (),
            "pairs.jsonl:1: a prompt of 1 and an answer of 96 tokens",
        ),
        ("{}", ("--mc-num", "10", "--batch", "4"), "--mc-num is 10 and --batch 4, expected positive numbers"),
        ("{}", ("--mc-num", "0"), "--mc-num is 0"),
        ("{}", ("--batch", "0"), "--batch is 0, expected at least 1 row"),
        ("{}", ("--cfg", "-1"), "--cfg is -1.0, expected 0 or more"),
        ("{}", ("--logits",), "--logits needs --tokens FILE.npz"),
        ("{}", ("--tokens", "x.npz"), "--tokens needs --output FILE.npz"),
        ("{}", ("--tokens", "x.npz", "--output", "o.npz"), "--tokens and --input both say what to score"),
        ("{}", ("--mc-nun", "3"), "--mc-nun is not a flag of this command (did you mean '--mc-num'?)"),
    ],
)
def test_lines_that_will_not_do(refused, run_dir, tmp_path, text, flags, sentence):
    (tmp_path / "pairs.jsonl").write_text(text + "\n")
    assert sentence in refused("score", "--checkpoint", run_dir, "--input", tmp_path / "pairs.jsonl", *flags)


def test_files_that_will_not_do(refused, golden_dir, run_dir, tmp_path):
    assert "--input names none.jsonl, which is not a file" in refused(
        "score", "--checkpoint", run_dir, "--input", "none.jsonl"
    )
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "4"}\n')
    found = refused("score", "--checkpoint", run_dir, "--input", tmp_path / "latin.jsonl")
    assert "is not UTF-8 text" in found
    assert "has no tokenizer files" in refused("score", "--checkpoint", golden_dir / "tiny_llada")


ROW, PAIR = np.ones((2, 3), int), {"prompt": np.ones(3, int), "answer": np.full(2, 4)}
INPUT = np.array([[[1, 1, 1, 500, 4], [1, 1, 1, 4, 500]]])


@pytest.mark.parametrize(
    ("known", "flags", "sentence"),
    [
        ({"ids": ROW}, ("--logits",), "has no array 'input_ids', expected one of shape (B, T); it holds ids"),
        ({"input_ids": ROW * 600}, ("--logits",), "'input_ids' has token 600, expected 0 to 511"),
        (
            {"input_ids": ROW, "attention_mask": ROW[:1]},
            ("--logits",),
            "'attention_mask' has shape (1, 3), expected (B, T) = (2, 3)",
        ),
        (
            {"input_ids": np.ones((1, 300), int)},
            ("--logits",),
            "rows of 300 tokens, but the model's rows have at most 256",
        ),
        ({"prompt": ROW, "answer": ROW[0]}, (), "'prompt' has shape (2, 3), expected (P,)"),
        ({"prompt": ROW[0]}, (), "has no array 'answer', expected one of shape (L,); it holds prompt"),
        (PAIR | {"perturbed": INPUT[0]}, (), "'perturbed' has shape (2, 5), expected (N, B, P + L)"),
        (PAIR | {"perturbed": INPUT + 1}, (), "'perturbed' differs from prompt and answer in more than masked answer"),
        (PAIR | {"perturbed": INPUT, "p_mask": INPUT * 0.0}, (), "'p_mask' has 0 at a masked token"),
        (PAIR | {"perturbed": INPUT, "p_mask": INPUT}, (), "'p_mask' has dtype int64, expected floating-point numbers"),
    ],
)
def test_arrays_that_will_not_do(refused, golden_dir, tmp_path, known, flags, sentence):
    np.savez(tmp_path / "in.npz", **known)
    places = ("--tokens", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert sentence in refused("score", "--checkpoint", golden_dir / "tiny_llada", *places, *flags)
