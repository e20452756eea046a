import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from igpo_jax.data import DataSettings, chain
from igpo_jax.data.pipeline import tokenizer_texts
from igpo_jax.data.templates import TEMPLATES, get_template
from igpo_jax.data.tokenizers import TokenizerSettings, build_tokenizer, load_tokenizer
from igpo_jax.errors import UserError

PLAIN = get_template("plain")
KINDS = ("words", "characters", "bpe")
CHAIN_TEXTS = tokenizer_texts(DataSettings(), [], PLAIN)
MATHS = [
    "Zoë pays $12.50 for 3 kg; that's 50% more than last year's price.\n\n  So $x = \\frac{1}{2}$ ≈ 0.5 \t✓",
    "She packs 42*1000=42,000 figs.\r\n#### 42000\n",
    "don't I'LL we've 日本語 👩🏽‍💻 cafe\u0301 café",
]


def chain_rows():
    settings = DataSettings(sft_rows=60, rl_rows=60, test_rows=60, test_lengths=(1, 12))
    return [example for rows in chain.generate(settings).values() for example in rows]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chain_task_survives_the_round_trip(kind, template):
    if kind == "words" and template.name not in ("plain", "boxed"):
        # Words stand one blank apart: a format that begins with a line end or ends a line in a blank is refused.
        with pytest.raises(UserError, match=r"tokenizer.kind 'words' turns .* use 'bpe', which keeps every text"):
            build_tokenizer(TokenizerSettings(kind=kind), tokenizer_texts(DataSettings(), [], template))
        return
    tokenizer = build_tokenizer(TokenizerSettings(kind=kind), tokenizer_texts(DataSettings(), [], template))
    for example in chain_rows():
        for text in (template.prompt(example.question), template.completion(example.reasoning, example.answer)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_the_chain_task():
    tokenizer = build_tokenizer(TokenizerSettings(), CHAIN_TEXTS)
    assert tokenizer.vocab_size < 100
    assert (tokenizer.eos_id, tokenizer.mask_id, tokenizer.pad_id) == (0, 1, 0)
    ids, offsets = tokenizer.encode_with_offsets("finds ten 437\nloses one 436\n#### 436")
    assert ids.dtype == np.int32 and offsets.dtype == np.int32 and offsets.shape == (len(ids), 2)
    names = tokenizer.fast.convert_ids_to_tokens(ids.tolist())
    assert names == ["finds", "ten", *"437", "\n", "loses", "one", *"436", "\n", "####", "4", "3", "6"]


def test_word_ids_do_not_depend_on_the_order_of_the_texts():
    first = build_tokenizer(TokenizerSettings(), CHAIN_TEXTS)
    second = build_tokenizer(TokenizerSettings(), CHAIN_TEXTS[::-1])
    assert first.fast.get_vocab() == second.fast.get_vocab()


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_offsets_point_at_the_token(kind):
    tokenizer = build_tokenizer(TokenizerSettings(kind=kind), CHAIN_TEXTS)
    for text in CHAIN_TEXTS:
        ids, offsets = tokenizer.encode_with_offsets(text)
        cut = [text[start:end] for start, end in offsets]
        assert cut == tokenizer.fast.convert_ids_to_tokens(ids.tolist())


def test_bpe_keeps_every_text_and_single_digits():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=400), MATHS)
    generator = random.Random(0)
    noise = ["".join(chr(generator.choice([9, 10, 13, *range(32, 900)])) for _ in range(60)) for _ in range(40)]
    for text in [*MATHS, *noise, "", " ", "\u2028", "0123456789 1,000.25"]:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert tokenizer.decode(ids) == text
        assert not len(offsets) or (offsets[0, 0] == 0 and offsets[-1, 1] == len(text))
        for (start, end), name in zip(offsets, tokenizer.fast.convert_ids_to_tokens(ids.tolist()), strict=True):
            digits = sum(character in "0123456789" for character in text[start:end])
            assert digits <= 1 and (not digits or len(name) == 1)


def test_offsets_cover_the_text_without_gaps():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=400), MATHS)
    text = MATHS[1]
    _, offsets = tokenizer.encode_with_offsets(text)
    assert "".join(text[start:end] for start, end in offsets) == text


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    tokenizer = build_tokenizer(TokenizerSettings(kind=kind, vocab_size=300), CHAIN_TEXTS)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    for name in ("mask_id", "eos_id", "pad_id", "vocab_size", "has_chat"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for text in CHAIN_TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    by_path = build_tokenizer(TokenizerSettings(kind="path", path=str(tmp_path / "tokenizer")), [])
    assert by_path.encode(CHAIN_TEXTS[0]) == tokenizer.encode(CHAIN_TEXTS[0])


def test_transformers_reads_the_saved_folder(tmp_path):
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=300), CHAIN_TEXTS)
    tokenizer.save(tmp_path)
    program = (
        "from transformers import AutoTokenizer\n"
        f"t = AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
        f"ids = t({CHAIN_TEXTS[1]!r})['input_ids']\n"
        "print(ids, t.mask_token, t.eos_token, t.decode(ids) == " + repr(CHAIN_TEXTS[1]) + ")"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout.strip() == f"{tokenizer.encode(CHAIN_TEXTS[1])} <|mdm_mask|> <|endoftext|> True", done.stderr


def test_decode_leaves_special_tokens_out_and_stops_at_eos():
    tokenizer = build_tokenizer(TokenizerSettings(), CHAIN_TEXTS)
    ids = tokenizer.encode("finds ten 437")
    mixed = [tokenizer.mask_id, *ids, tokenizer.eos_id, *ids[:1]]
    assert tokenizer.decode(mixed) == "finds ten 437 finds"
    assert tokenizer.decode(np.asarray(mixed), until_eos=True) == "finds ten 437"


def test_text_that_looks_like_a_special_token_is_text():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=300), MATHS)
    text = "a <|mdm_mask|> and <|endoftext|>"
    ids = tokenizer.encode(text)
    assert tokenizer.mask_id not in ids and tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text


def test_unknown_words_are_refused():
    for kind, text in (("words", "Mia has 4 elephants."), ("characters", "Zoë")):
        tokenizer = build_tokenizer(TokenizerSettings(kind=kind), CHAIN_TEXTS)
        with pytest.raises(UserError, match=f"no token for a part of '{text}'.*use tokenizer.kind 'bpe'"):
            tokenizer.encode(text)


def test_words_refuse_texts_that_they_would_change():
    with pytest.raises(UserError, match=r"tokenizer.kind 'words' turns 'two  blanks' into 'two blanks'; use 'bpe'"):
        build_tokenizer(TokenizerSettings(), ["two  blanks"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenizerSettings(kind="word"), "tokenizer.kind is 'word'.*did you mean 'words'"),
        (lambda: TokenizerSettings(kind="path"), "tokenizer.path is empty"),
        (lambda: TokenizerSettings(chat="always"), "tokenizer.chat is 'always'"),
        (lambda: build_tokenizer(TokenizerSettings(), []), "there are no texts"),
        (lambda: build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=100), ["a"]), "at least 258"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(UserError, match=message):
        build()


# --- folders from elsewhere ----------------------------------------------------------------------

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def foreign_folder(path, added=("<|startoftext|>", *CHAT_TOKENS), drop=(), **config):
    """A tokenizer as LLaDA ships it: the mask token exists but is not registered as one."""
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=300), CHAIN_TEXTS)
    tokenizer.fast.backend_tokenizer.add_special_tokens(list(added))
    tokenizer.save(path)
    if drop:
        content = json.loads((path / "tokenizer.json").read_text())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in drop]
        content["model"]["vocab"] = {word: row for word, row in content["model"]["vocab"].items() if word not in drop}
        (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return path


def test_llada_style_folder(tmp_path):
    folder = foreign_folder(
        tmp_path, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=CHAT
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.fast.mask_token_id is None and tokenizer.mask_id == 1 and tokenizer.eos_id == 0
    assert tokenizer.has_chat
    text = "Mia has 437 shells."
    ids = tokenizer.encode_prompt(text)
    names = tokenizer.fast.convert_ids_to_tokens(ids)
    assert names[:2] == ["<|startoftext|>", "<|start_header_id|>"] and names.count("<|end_header_id|>") == 2
    inside = tokenizer.encode(text)
    assert any(ids[start : start + len(inside)] == inside for start in range(len(ids)))
    assert ids != load_tokenizer(folder, chat="never").encode_prompt(text) == inside
    # What the model's turn begins with stands behind the template's last mark.
    assert tokenizer.encode_prompt(text, "Mia has") == ids + tokenizer.encode("Mia has")
    assert load_tokenizer(folder, chat="never").encode_prompt(text, " 437") == tokenizer.encode(text + " 437")
    with pytest.raises(UserError, match="a prompt holds the special token '<|eot_id|>'".replace("|", r"\|")):
        tokenizer.encode_prompt("end <|eot_id|> here")


def test_a_template_whose_tokens_are_missing_is_not_applied(tmp_path):
    # LLaDA-8B-Base: the chat template of Instruct without its three tokens.
    folder = foreign_folder(tmp_path, added=("<|startoftext|>",), bos_token="<|startoftext|>", chat_template=CHAT)
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.has_chat
    assert tokenizer.encode_prompt("Mia") == tokenizer.encode("Mia")


def test_a_broken_chat_template_is_named(tmp_path):
    folder = foreign_folder(tmp_path, chat_template="{% for m in messages %}")
    with pytest.raises(UserError, match=r"chat template cannot be applied.*tokenizer.chat to 'never'"):
        load_tokenizer(folder)
    assert not load_tokenizer(folder, chat="never").has_chat


@pytest.mark.parametrize(("token", "role"), [("<|mdm_mask|>", "mask"), ("<|endoftext|>", "end")])
def test_missing_mask_or_end_token(tmp_path, token, role):
    with pytest.raises(UserError, match=f"has no {role} token"):
        load_tokenizer(foreign_folder(tmp_path, drop=(token,)))


def test_registered_special_tokens_come_first(tmp_path):
    folder = foreign_folder(tmp_path, added=("[M]", "[E]", "[P]"), mask_token="[M]", eos_token="[E]", pad_token="[P]")
    tokenizer = load_tokenizer(folder)
    names = tokenizer.fast.convert_ids_to_tokens([tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id])
    assert names == ["[M]", "[E]", "[P]"]


def test_folders_that_are_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json is missing; a tokenizer folder holds tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold a readable fast tokenizer"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path):
    folder = foreign_folder(tmp_path, auto_map={"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]})
    flag = tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(f"open({str(flag)!r}, 'w').close()\nclass Own: pass\n")
    load_tokenizer(folder)
    assert not flag.exists()
    shutil.rmtree(folder)
