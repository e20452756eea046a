"""Opens a checkpoint of any kind for a command: weights in compute dtype, tokenizer, and the form of its prompts."""

import contextlib
import dataclasses
import pathlib
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from convert import runs, source, tokenizer_files
from convert.checkpoint_files import load_config, read_json
from igpo_jax import settings as settings_lib
from igpo_jax.data import templates
from igpo_jax.data.tokenizers import Tokenizer, load_tokenizer
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rl.hints import HintSettings


@dataclasses.dataclass(frozen=True)
class RunHabits:
    """How a training run asked its model: what a command does with the run's checkpoint unless told otherwise."""

    template: templates.Template
    sampler: Sampler  # at the temperature of the run's evaluations
    hints: HintSettings
    chat: str  # whether prompts went through the tokenizer's chat template: "auto" or "never"
    samples: int = 1  # completions per question in the run's evaluations


def read_habits(folder: pathlib.Path) -> RunHabits:
    """Reads the few fields that matter here; the others may be those of another version.

    Raises:
      UserError: config.json is missing or damaged, or one of the fields is.
    """
    path = folder / "config.json"
    values = read_json(path)
    sampler = settings_lib.from_config_dict(Sampler, values.get("sampler", {}), f"{path}: sampler")
    hints = values.get("rl", {}).get("hints", {})
    temperature = float(values.get("evaluation", {}).get("temperature", 0.0))
    return RunHabits(
        template=templates.get_template(values.get("template", "plain")),
        sampler=dataclasses.replace(sampler, temperature=temperature),
        hints=settings_lib.from_config_dict(HintSettings, hints, f"{path}: rl.hints"),
        chat=values.get("tokenizer", {}).get("chat", "auto"),
        samples=int(values.get("evaluation", {}).get("samples", 1)),
    )


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model ready to be asked."""

    path: pathlib.Path
    policy: llada.Policy  # weights in the compute dtype
    model: llada.Model
    tokenizer: Tokenizer | None
    run: RunHabits | None  # where the checkpoint is a training run
    mesh: jax.sharding.Mesh | None

    def on_mesh(self) -> AbstractContextManager:
        """Inside it, arrays are laid out over the devices that share the model."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def words(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          UserError: the checkpoint has none.
        """
        if self.tokenizer is None:
            raise _no_tokenizer(self.path)
        return self.tokenizer

    def prompt_ids(self, text: str, raw: bool = False) -> list[int]:
        """The tokens of a prompt: the run's prompt format, then the chat template, where there are such.

        Args:
          text: what the user wrote.
          raw: take it as it is.

        Raises:
          UserError: the prompt is empty, or the tokenizer cannot write it.
        """
        if not text.strip():
            raise UserError("the prompt is empty; give it some text, as in --prompt='What is 2 + 3?'")
        if raw:
            return self.encode(text)
        self.encode(text)  # names what has no token; in a chat template the whole prompt would be blamed
        if not self.run:
            return self.words().encode_prompt(text)
        return self.words().encode_prompt(self.run.template.prompt(text), self.run.template.prefill)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as it is.

        Raises:
          UserError: a word of it has no token, which only vocabularies of whole words or characters know.
        """
        try:
            return self.words().encode(text)
        except UserError as error:
            for word in text.split():
                if not _has_tokens(self.words(), word):
                    raise UserError(
                        f"the tokenizer of {self.path} has no token for {word!r}; use words that its training data had"
                    ) from error
            raise


@dataclasses.dataclass(frozen=True)
class Outline:
    """A checkpoint without its weights: what is small enough to be read before anything else is decided."""

    path: pathlib.Path
    kind: str  # "model", "run" or "hf"
    config: llada.ModelConfig
    tokenizer: Tokenizer | None
    run: RunHabits | None  # where the checkpoint is a training run


def read_outline(path: str) -> Outline:
    """Reads everything of a checkpoint but its weights.

    Raises:
      UserError: there is no checkpoint, or a file of it is damaged or does not fit the others.
    """
    folder = pathlib.Path(path)
    kind = source.kind_of(folder)
    run = read_habits(folder) if kind == "run" else None
    config = runs.Run(folder).config if run else load_config(folder)
    return Outline(folder, kind, config, _tokenizer(folder, config, run), run)


def load_policy(outline: Outline, dtype: str, mesh: jax.sharding.Mesh | None) -> tuple[llada.Policy, llada.Model]:
    """Loads the weights in the compute dtype, onto the mesh or the first device.

    Args:
      outline: of the checkpoint.
      dtype: "float32", "bfloat16", or "auto": bfloat16 where all weights are stored so, else float32.
      mesh: where they go.

    Raises:
      UserError: the weights are damaged or missing.
    """
    _, params, _ = source.load_model(outline.path, mesh, None if dtype == "auto" else dtype)
    if dtype == "auto":
        halves = all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
        dtype = "bfloat16" if halves else "float32"
    model = llada.Model(outline.config, llada.Compute(dtype=dtype))
    return jax.tree.map(lambda leaf: leaf.astype(model.dtype), llada.Policy(params)), model


def open_checkpoint(path: str, *, dtype: str = "auto", tensor: int = 1, text: bool = True) -> Opened:
    """Opens an imported model, a Hugging Face folder or a run directory.

    Args:
      path: the folder.
      dtype: "float32", "bfloat16", or "auto": bfloat16 where all weights are stored so, else float32.
      tensor: devices that share the model, each holding its part of every matrix.
      text: whether a tokenizer is needed.

    Raises:
      UserError: there is no checkpoint, it is damaged, lacks a tokenizer that is needed, or cannot be shared so.
    """
    outline = read_outline(path)
    if text and outline.tokenizer is None:
        raise _no_tokenizer(outline.path)
    mesh = _mesh(outline.config, tensor)
    # The weights come last: whatever is wrong with the rest is said before gigabytes are read.
    policy, model = load_policy(outline, dtype, mesh)
    return Opened(outline.path, policy, model, outline.tokenizer, outline.run, mesh)


def _has_tokens(tokenizer: Tokenizer, word: str) -> bool:
    try:
        tokenizer.encode(word)
    except UserError:
        return False
    return True


def _no_tokenizer(folder: pathlib.Path) -> UserError:
    return UserError(
        f"{folder} has no tokenizer files, which text needs; put the tokenizer.json and tokenizer_config.json of the "
        "model there, or give token ids with --tokens"
    )


def _tokenizer(folder: pathlib.Path, config: llada.ModelConfig, run: RunHabits | None) -> Tokenizer | None:
    place = source.tokenizer_folder(folder)
    if place is None:
        return None
    tokenizer = tokenizer_files.check(place, config)
    # A run that was trained without the chat template is asked without it.
    return load_tokenizer(place, run.chat) if run and run.chat != "auto" else tokenizer


def check_tensor(config: llada.ModelConfig, tensor: int) -> None:
    """Raises UserError where the model's matrices cannot be divided over ``tensor`` devices."""
    for name in ("n_kv_heads", "mlp_hidden_size", "embedding_size"):
        if getattr(config, name) % tensor:
            raise UserError(f"--tensor is {tensor}, but the model's {name} is {getattr(config, name)}; give a divisor")


def _mesh(config: llada.ModelConfig, tensor: int) -> jax.sharding.Mesh | None:
    if tensor == 1:
        return None
    devices = jax.devices()
    if not 1 <= tensor <= len(devices):
        raise UserError(f"--tensor is {tensor}, but there are {len(devices)} devices; give 1 to {len(devices)}")
    check_tensor(config, tensor)
    return make_mesh(MeshSettings(data=1, fsdp=1, tensor=tensor), devices[:tensor])
