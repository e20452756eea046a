"""Text of single tokens, and the room it takes on a terminal."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.pages.text import JOINERS


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray, mask_id: int) -> list[str]:
    """The text that each token adds to those before it, masks passed over; "" for masks and special tokens.

    Args:
      tokenizer: that of the model.
      tokens: of one canvas, in part still masks.
      mask_id: the mask token.

    Returns:
      One text per token. Joined they are the canvas's text, as far as it is there.
    """
    texts: list[str] = []
    known: list[int] = []
    start = end = 0  # known[start:end] is the text before: blanks and half characters depend on it
    for token in map(int, tokens):
        if token == mask_id:
            texts.append("")
            continue
        known.append(token)
        before, after = tokenizer.decode(known[start:end]), tokenizer.decode(known[start:])
        # Half a character shows nothing until its last byte is there.
        whole = len(after) > len(before) and not after.endswith("�")
        texts.append(after[len(before) :] if whole else "")
        if whole:
            start, end = end, len(known)
    return texts


def marker(tokenizer: Tokenizer, token: int) -> str:
    """What stands on the screen for a token without text: a dot for the end token, the name of another special one."""
    if token == tokenizer.eos_id:
        return "·"
    return "" if tokenizer.decode([token]) else str(tokenizer.fast.convert_ids_to_tokens(int(token)) or "")


def columns(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or character in JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
