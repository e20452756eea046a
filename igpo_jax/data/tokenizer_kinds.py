"""Builds the small tokenizers: words, characters and byte-level BPE, each from the texts it has to write.

All three are plain ``tokenizers`` objects with the two special tokens first, so ids 0 and 1 are fixed.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from igpo_jax.errors import UserError

EOS = "<|endoftext|>"
MASK = "<|mdm_mask|>"
SPECIALS = (EOS, MASK)

#: Number of byte-level tokens that every BPE vocabulary starts from.
_BYTES = 256
# Line ends, single digits, marks like "####", tags like "</answer>", commands like "\boxed", punctuation.
_WORD_PIECES = r"\n|\d|#+|</?[a-z]+>|\\[a-z]+|[^\w\s]"
# Contractions, words with the character before them, single digits, punctuation, line ends, blanks.
_BPE_PIECES = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def build_words(texts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer with one token per word, digit, punctuation mark and line end of ``texts``.

    Blanks have no token: decoding puts one between tokens, except inside a number, before ``. , : ? ! }`` and around
    ``{`` and line ends. Texts written any other way do not survive the round trip, which `build_tokenizer` checks.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PIECES), "isolated"),
            pre_tokenizers.Split(Regex(" +"), "removed"),
        ]
    )
    tokenizer = _from_pieces(texts, splitter)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("^"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
            decoders.Replace(Regex(r" (?=[.,:?!}])"), ""),
            decoders.Replace(Regex(r" ?\{ ?"), "{"),
            decoders.Replace(Regex(r" ?\n ?"), "\n"),
            decoders.Replace(Regex("^ "), ""),
        ]
    )
    return tokenizer


def build_characters(texts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer with one token per character of ``texts``."""
    tokenizer = _from_pieces(texts, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def build_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE tokenizer trained on ``texts``: any text survives the round trip, digits stay single.

    Raises:
        UserError: ``vocab_size`` has no room for the 256 bytes and the special tokens.
    """
    least = _BYTES + len(SPECIALS)
    if vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}, but byte-level BPE needs at least {least}; set it to e.g. 2048"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_BPE_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _from_pieces(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer) -> Tokenizer:
    pieces = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    # Sorted, so that the ids do not depend on the order of the texts.
    vocabulary = {piece: row for row, piece in enumerate([*SPECIALS, *sorted(pieces - set(SPECIALS))])}
    # No unknown token: a word without an id must stop the run and not turn into a blank.
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|none|>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer
