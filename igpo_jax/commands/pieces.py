"""Names of tokens without text, and the room that text takes on a terminal."""

import unicodedata

from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.pages.text import JOINERS


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
