"""The tokenizer files of a checkpoint: copied as they are, and held against the checkpoint's config.json."""

import pathlib
import shutil

from convert import shards
from igpo_jax.data.tokenizers import Tokenizer, load_tokenizer
from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig

VOCABULARY = "tokenizer.json"

#: All that a fast tokenizer may come with; none of it is code.
FILES = (
    VOCABULARY,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "vocab.json",
)

#: sha256 of the published tokenizer.json files.
PUBLISHED = {
    "071eb20fe7bd601550b1b7838ff696d6c93b88f51257f753303d3df23163c381": "LLaDA-8B-Instruct",
    "ee1ef8e5f6d9493ac25480b7b7337ff5d2c1b946190afff18d12c86ca738ae00": "LLaDA-8B-Base",
}

#: Size of the published vocabulary, padding rows included; another one is another model's.
_PUBLISHED_SIZE = 126464


def present(folder: pathlib.Path) -> list[pathlib.Path]:
    """The tokenizer files of a folder; none where it lacks the vocabulary, without which the others are of no use."""
    if not (folder / VOCABULARY).is_file():
        return []
    return [folder / name for name in FILES if (folder / name).is_file()]


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the tokenizer files of one folder to another, byte for byte."""
    for path in present(source):
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / path.name)


def check(folder: pathlib.Path, config: ModelConfig) -> Tokenizer:
    """Loads the tokenizer of a folder and holds its special ids against the checkpoint's.

    LLaDA's mask token is not registered as such in its tokenizer files, so it is looked up by its name.

    Raises:
      UserError: the tokenizer cannot be read, has no mask or end token, or its ids are not those of ``config``.
    """
    tokenizer = load_tokenizer(folder)
    pairs = {
        "mask_token_id": (tokenizer.mask_id, config.mask_token_id),
        "eos_token_id": (tokenizer.eos_id, config.eos_token_id),
        "pad_token_id": (tokenizer.pad_id, config.pad_token_id),
    }
    for field, (found, wanted) in pairs.items():
        if found != wanted:
            raise UserError(
                f"{folder / VOCABULARY} has {field} {found}, but config.json says {wanted}; use the tokenizer files "
                "that belong to the checkpoint"
            )
    if tokenizer.vocab_size > config.embedding_size:
        raise UserError(
            f"{folder / VOCABULARY} has ids up to {tokenizer.vocab_size - 1}, but the embedding of config.json has "
            f"{config.embedding_size} rows; use the tokenizer files that belong to the checkpoint"
        )
    return tokenizer


def describe(folder: pathlib.Path, tokenizer: Tokenizer, config: ModelConfig) -> str:
    """One line on a tokenizer: which one it is, and whether it can chat."""
    known = PUBLISHED.get(shards.file_digest(folder / VOCABULARY).hexdigest())
    chat = "chat template" if tokenizer.has_chat else "no chat template whose tokens it has"
    origin = f"the published file of {known}" if known else f"{tokenizer.vocab_size} ids"
    if not known and config.vocab_size == _PUBLISHED_SIZE:
        origin = "not one of the published files of LLaDA-8B-Base and LLaDA-8B-Instruct; make sure it is what you want"
    return f"tokenizer: {origin}; {chat}"
