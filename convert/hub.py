"""Checkpoints on the Hugging Face hub: one exact revision, weights and settings only, never code."""

import pathlib
import re

from convert import tokenizer_files
from igpo_jax.errors import UserError

#: Commits whose files this project's reference values were checked against.
REVISIONS = {
    "GSAI-ML/LLaDA-8B-Base": "0f2787f2d87eac5eed8a087d5ecd24277e6255b2",
    "GSAI-ML/LLaDA-8B-Instruct": "08b83a6feb34df1a6011b80c3c00c7563e963b07",
}

#: Files that are fetched; Python files of a repository stay where they are.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    *tokenizer_files.FILES,
)

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(source: str) -> bool:
    """Whether a source that is no folder has the form of a hub id, as in GSAI-ML/LLaDA-8B-Instruct."""
    return not pathlib.Path(source).exists() and bool(_ID.fullmatch(source))


def fetch(name: str, revision: str = "") -> tuple[pathlib.Path, str]:
    """Downloads a checkpoint, or finds it in the local cache.

    Args:
      name: hub id.
      revision: full commit hash; by default the one in ``REVISIONS``.

    Returns:
      (folder, commit)

    Raises:
      UserError: there is no commit, or the download fails.
    """
    commit = revision or REVISIONS.get(name, "")
    if not commit:
        raise UserError(
            f"--source {name} needs an exact revision; pass --revision with the 40 digits of a commit of "
            f"huggingface.co/{name}/commits/main"
        )
    if not _COMMIT.fullmatch(commit):
        raise UserError(
            f"--revision is '{commit}', expected the 40 hex digits of a commit: a branch or a tag may move; copy them "
            f"from huggingface.co/{name}/commits/main"
        )
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=list(PATTERNS))
    except Exception as error:  # the network fails in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name} at {commit} cannot be downloaded ({lines[0][:200]}); check the name and the network, or download "
            "it elsewhere and pass its folder as --source"
        ) from error
    return pathlib.Path(folder), commit
