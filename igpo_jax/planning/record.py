"""Plans on disk: one JSON per cell of a table, and the settings that decide a plan, with their hash."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from igpo_jax import settings as settings_lib
from igpo_jax.errors import UserError
from igpo_jax.training.run_settings import RunSettings

#: Fields (and whole sections) that decide what is compiled and how often it runs; all others leave a plan as it is.
DECIDING = (
    *("prompt_length", "model.shape", "model.d_model", "model.n_layers", "model.n_heads", "model.n_kv_heads"),
    *("model.mlp_hidden_size", "compute", "mesh", "sampler"),
    *("sft.steps", "sft.batch_size", "sft.micro_batches", "sft.completion_length", "sft.logprob_chunk", "sft.lora"),
    *("rl.steps", "rl.inner_updates", "rl.micro_batches", "rl.score_batches", "rl.logprob_chunk", "rl.lora"),
    *("rl.estimator", "rl.rollout.groups", "rl.rollout.group_size", "rl.rollout.rows_per_program"),
)


def deciding(settings: RunSettings) -> dict[str, Any]:
    """The values of the deciding fields, by path."""
    return {path: _value(settings_lib.to_dict(settings), path) for path in DECIDING}


def _value(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def plan_hash(settings: RunSettings) -> str:
    """12 hex digits that two configs share where their plans are the same."""
    text = json.dumps(deciding(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_json(plan: Any) -> str:
    """A plan (dataclass) as indented JSON."""
    values = dataclasses.asdict(plan) | {"fits": plan.fits, "step_seconds": plan.step_seconds}
    return json.dumps(values, indent=2) + "\n"


def write(text: str, path: pathlib.Path) -> None:
    """Stores what ``plan --json`` printed; the file appears whole or not at all.

    Raises:
      UserError: the config cannot fit, so nothing was compiled and there is no plan.
    """
    values = json.loads(text)
    if "programs" not in values:
        raise UserError(f"{path.stem} has no plan: {values['reason']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.rename(path)


def read(path: pathlib.Path) -> Mapping[str, Any]:
    """A stored cell.

    Raises:
      UserError: the file is missing or no plan.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a plan ({error}); make it again with plan --json") from error
    if not isinstance(values, dict) or "programs" not in values or "plan_hash" not in values:
        raise UserError(f"{path} holds no plan; make it again with plan --json")
    return values
