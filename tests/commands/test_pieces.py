"""Text of single tokens, and text made harmless."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.commands.pieces import columns, marker
from igpo_jax.data.token_texts import token_texts
from igpo_jax.data.tokenizers import TokenizerSettings, build_tokenizer, load_tokenizer
from igpo_jax.pages.text import printable


@pytest.fixture(scope="module")
def bytes_tokenizer(chat_dir):
    return load_tokenizer(chat_dir)


@pytest.fixture(scope="module")
def words():
    return build_tokenizer(TokenizerSettings(kind="words"), ["she finds ten 437\n#### 1"])


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain, naïve 日本 👩‍👩‍👧 é\ttab\nline", "plain, naïve 日本 👩‍👩‍👧 é\ttab\nline"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb\x08c\x7f\x9b1m", "a\\x0db\\x08c\\x7f\\x9b1m"),
        ("right\u202eleft\u2066x", "right\\u{202e}left\\u{2066}x"),
        ("zero\u200bwidth\ufeff\u2028line", "zero\\u{200b}width\\u{feff}\\u{2028}line"),
        ("tag\U000e0041 private\ue000", "tag\\u{e0041} private\\u{e000}"),
    ],
)
def test_what_a_terminal_could_obey_is_written_out(text, safe):
    assert printable(text) == safe


@settings(deadline=None)
@given(st.text())
def test_no_control_character_is_left(text):
    assert not [c for c in printable(text) if ord(c) < 32 and c not in "\n\t"]
    assert printable(printable(text)) == printable(text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_pieces_make_up_the_text(bytes_tokenizer, text):
    """Also where a character has several tokens."""
    ids = bytes_tokenizer.encode(text)
    pieces = token_texts(bytes_tokenizer, ids, bytes_tokenizer.mask_id)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text.rstrip("�")


def test_pieces_of_words_keep_their_blanks(words):
    ids = words.encode("she finds ten 437\n#### 1")
    assert token_texts(words, ids, words.mask_id) == ["she", " finds", " ten", " 4", "3", "7", "\n", "####", " 1"]


def test_masks_are_passed_over(words):
    ids = np.array(words.encode("she finds ten 437"))
    ids[[1, 4]] = words.mask_id
    assert token_texts(words, ids, words.mask_id) == ["she", "", " ten", " 4", "", "7"]


def test_half_a_character_waits_for_its_end(bytes_tokenizer):
    ids = bytes_tokenizer.encode("a日b")
    assert token_texts(bytes_tokenizer, ids, bytes_tokenizer.mask_id) == ["a", "", "", "日", "b"]
    torn = [ids[0], ids[1], bytes_tokenizer.mask_id, ids[4]]
    assert token_texts(bytes_tokenizer, torn, bytes_tokenizer.mask_id) == ["a", "", "", "�b"]


def test_special_tokens_have_no_text_but_a_marker(bytes_tokenizer):
    vocabulary = bytes_tokenizer.fast.get_vocab()
    ids = [bytes_tokenizer.eos_id, vocabulary["<|eot_id|>"], *bytes_tokenizer.encode("x")]
    assert token_texts(bytes_tokenizer, ids, bytes_tokenizer.mask_id) == ["", "", "x"]
    assert [marker(bytes_tokenizer, token) for token in ids] == ["·", "<|eot_id|>", ""]
    assert marker(bytes_tokenizer, 10**6) == ""


@pytest.mark.parametrize(("text", "wide"), [("abc", 3), ("日本", 4), ("é", 1), ("e\u0301", 1), ("", 0)])
def test_columns(text, wide):
    assert columns(text) == wide
