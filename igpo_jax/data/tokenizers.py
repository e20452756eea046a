"""One tokenizer type for every run: a real Hugging Face fast tokenizer with a mask token and an end token."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from igpo_jax.data.tokenizer_kinds import EOS, MASK, build_bpe, build_characters, build_words
from igpo_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer is used.

    Raises:
        UserError: a field has a value outside its range.
    """

    #: ``words``, ``characters``, ``bpe`` (all three are built from the data) or ``path``.
    kind: str = "words"
    #: Vocabulary of ``bpe``, special tokens included.
    vocab_size: int = 2048
    #: Folder with tokenizer.json, for ``path``.
    path: str = ""
    #: ``auto``: prompts go through the tokenizer's chat template where it has one whose tokens it knows; or ``never``.
    chat: str = "auto"

    def __post_init__(self) -> None:
        check_choice("tokenizer.kind", self.kind, ("words", "characters", "bpe", "path"))
        check_choice("tokenizer.chat", self.chat, ("auto", "never"))
        if self.kind == "path" and not self.path:
            raise UserError("tokenizer.path is empty, but tokenizer.kind is 'path'; set it to the tokenizer's folder")


class Tokenizer:
    """Text to ids and back. Wraps a ``transformers.PreTrainedTokenizerFast``, which is in ``fast``.

    Attributes:
        source: the folder that it was loaded from, or how it was made, for messages.
        mask_id: id of the mask token ``<|mdm_mask|>`` (or of the registered mask token).
        eos_id: id of the end token.
        pad_id: id that fills rows, the end token's id where the tokenizer registers no other.
        vocab_size: number of ids, added tokens included.
        has_chat: whether `encode_prompt` applies a chat template.
    """

    def __init__(self, fast: Any, source: str, chat: str = "auto"):
        self.fast = fast
        self.source = source
        self.mask_id = _special_id(fast, fast.mask_token_id, MASK, "mask", source)
        self.eos_id = _special_id(fast, fast.eos_token_id, EOS, "end", source)
        self.pad_id: int = self.eos_id if fast.pad_token_id is None else fast.pad_token_id
        self.vocab_size: int = max(fast.get_vocab().values()) + 1
        self.has_chat = chat == "auto" and _knows_its_chat_tokens(fast)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text``; nothing is added, and text that looks like a special token is plain text.

        Raises:
            UserError: the tokenizer has no token for a part of ``text``.
        """
        return self._encode(text, special=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of ``text`` with special tokens spelled out in it, as in a rendered chat template."""
        return self._encode(text, special=True).ids

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids (n,) int32 and, for each, the characters [start, end) of ``text`` it stands for, (n, 2) int32."""
        encoding = self._encode(text, special=False)
        offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
        return np.asarray(encoding.ids, np.int32), offsets

    def encode_prompt(self, text: str, prefill: str = "") -> list[int]:
        """Returns the ids of ``text`` as a user's turn in the chat template, or as it is where there is no template.

        Args:
            text: what the user says.
            prefill: what the model's turn begins with, behind the template's marks.

        Raises:
            UserError: ``text`` holds a special token of a tokenizer whose template is applied.
        """
        if not self.has_chat:
            return self.encode(text + prefill)
        planted = [token for token in self.fast.get_added_vocab() if token in text]
        if planted:
            raise UserError(
                f"a prompt holds the special token '{planted[0]}'; remove it from the question: {text[:60]!r}"
            )
        turns = [{"role": "user", "content": text}]
        return self._encode(_render(self.fast, turns), special=True).ids + self.encode(prefill)

    def decode(self, ids: Sequence[int] | np.ndarray, until_eos: bool = False) -> str:
        """Returns the text of ``ids`` without special tokens; with ``until_eos`` only that before the first EOS."""
        plain = [int(i) for i in ids]
        if until_eos and self.eos_id in plain:
            plain = plain[: plain.index(self.eos_id)]
        return self.fast.backend_tokenizer.decode(plain, skip_special_tokens=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json and tokenizer_config.json, readable by ``AutoTokenizer`` of any recent release."""
        self.fast.save_pretrained(str(folder))
        path = pathlib.Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # transformers 5 writes a class name that transformers 4 does not know; both know this one.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _encode(self, text: str, special: bool) -> Any:
        backend = self.fast.backend_tokenizer
        backend.encode_special_tokens = not special
        try:
            return backend.encode(text, add_special_tokens=False)
        except Exception as error:
            # The Rust library raises the bare Exception type for a word that has no id.
            raise UserError(
                f"the tokenizer has no token for a part of {text[:80]!r} ({error});"
                " rebuild it from texts that hold every word, or use tokenizer.kind 'bpe'"
            ) from None


def load_tokenizer(folder: str | os.PathLike[str], chat: str = "auto") -> Tokenizer:
    """Loads a tokenizer from a local Hugging Face folder. Nothing is downloaded and no code of the folder is run.

    Raises:
        UserError: the folder has no tokenizer.json, or the tokenizer has no mask or end token.
    """
    path = pathlib.Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; a tokenizer folder holds tokenizer.json and tokenizer_config.json")
    try:
        # A named class, not AutoTokenizer: it never looks at code that the folder brings along.
        fast = _fast_class().from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder} does not hold a readable fast tokenizer ({error}); copy its files again") from error
    return Tokenizer(fast, str(folder), chat)


def build_tokenizer(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """Builds the tokenizer of ``settings`` from ``texts``, or loads it (kind ``path``, texts unused).

    Raises:
        UserError: a text does not come back from ``decode(encode(text))``, or the vocabulary is too small.
    """
    if settings.kind == "path":
        return load_tokenizer(settings.path, settings.chat)
    kept = list(texts)
    if not kept:
        raise UserError(f"tokenizer.kind '{settings.kind}' is built from the data, but there are no texts")
    if settings.kind == "bpe":
        backend = build_bpe(kept, settings.vocab_size)
    else:
        backend = build_words(kept) if settings.kind == "words" else build_characters(kept)
    fast = _fast_class()(tokenizer_object=backend, eos_token=EOS, pad_token=EOS, mask_token=MASK)
    tokenizer = Tokenizer(fast, f"the '{settings.kind}' tokenizer", settings.chat)
    _check_round_trip(tokenizer, kept, settings.kind)
    return tokenizer


def _check_round_trip(tokenizer: Tokenizer, texts: Iterable[str], kind: str) -> None:
    for text in texts:
        back = tokenizer.decode(tokenizer.encode(text))
        if back != text:
            raise UserError(
                f"tokenizer.kind '{kind}' turns {text[:80]!r} into {back[:80]!r}; use 'bpe', which keeps every text"
            )


def _fast_class() -> Any:
    # Without this the import announces on the screen that PyTorch is not installed.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def _special_id(fast: Any, registered: int | None, name: str, role: str, source: str) -> int:
    found = registered if registered is not None else fast.get_vocab().get(name)
    if found is None:
        raise UserError(
            f"{source} has no {role} token: none is registered and '{name}' is not in its vocabulary;"
            f" add '{name}' to tokenizer.json as a special token"
        )
    return int(found)


def _render(fast: Any, turns: list[dict[str, str]]) -> str:
    try:
        return fast.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # A template is a program from a file; it may fail in any way, a missing jinja2 included.
        raise UserError(
            f"the tokenizer's chat template cannot be applied ({error}); correct it, or set tokenizer.chat to 'never'"
        ) from error


def _knows_its_chat_tokens(fast: Any) -> bool:
    if not fast.chat_template:
        return False
    # LLaDA-8B-Base ships the Instruct template without its header tokens, which would be spelled out as plain text.
    markers = re.findall(r"<\|[^|<>]+\|>", _render(fast, [{"role": "user", "content": "x"}]))
    return all(marker in fast.get_vocab() for marker in markers)
