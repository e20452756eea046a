"""The text that every single token adds to a decoded sequence."""

from collections.abc import Sequence

import numpy as np

from igpo_jax.data.tokenizers import Tokenizer


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
