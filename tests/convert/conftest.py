"""Small checkpoints and run directories of the kinds that the converter meets, and its command line in this process."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convert import __main__ as command
from convert import hf
from igpo_jax import settings
from igpo_jax.models import llada, lora
from igpo_jax.training.checkpoints import Checkpoints
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.state import TrainState, merged_params

SMALL = llada.ModelConfig(
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=24,
    vocab_size=20,
    embedding_size=24,
    max_sequence_length=64,
    mask_token_id=19,
    eos_token_id=18,
    pad_token_id=18,
)

VARIANTS = {
    "plain": {},
    "grouped": {"n_kv_heads": 2},
    "multi-query": {"n_kv_heads": 1},
    "biases": {"include_bias": True, "bias_for_layer_norm": True},
    "qkv-bias": {"include_qkv_bias": True, "n_kv_heads": 2},
    "tied": {"weight_tying": True},
    "rotary": {"rope_theta": 10000.0, "rms_norm_eps": 1e-3},
}


@pytest.fixture
def run(capfd):
    """Runs ``python -m convert ARGUMENTS`` in this process: .code, .out and .err."""

    def call(*arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = command.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def refused(run):
    """Runs a command that must fail, and returns its one line of complaint without the "error: "."""

    def call(*arguments) -> str:
        done = run(*arguments)
        assert done.code == 2
        (line,) = [line for line in done.err.splitlines() if "%" not in line]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


def random_params(config: llada.ModelConfig, dtype: str = "float32"):
    """Parameters none of which is a constant, so that a forgotten one shows."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), dtype)  # noqa: E731
    return jax.tree.map(draw, llada.abstract(config))


def same_arrays(one, other) -> None:
    """Equal in structure, dtype and every bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Contents of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small(tmp_path) -> pathlib.Path:
    """A small float32 checkpoint in one file."""
    hf.save_checkpoint(tmp_path / "small", SMALL, random_params(SMALL))
    return tmp_path / "small"


def edit_json(path: pathlib.Path, **changes) -> None:
    """Changes fields of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


# --- a byte-level tokenizer with LLaDA's special tokens at LLaDA's ids ---

SPECIAL_IDS = {"<|startoftext|>": 126080, "<|endoftext|>": 126081, "[CLS]": 126082, "<|mdm_mask|>": 126336}
CHAT_IDS = {"<|start_header_id|>": 126346, "<|end_header_id|>": 126347, "<|eot_id|>": 126348}
TEMPLATE = (
    "{% for turn in messages %}{{ ('<|startoftext|>' if loop.first else '') + '<|start_header_id|>' + turn.role + "
    "'<|end_header_id|>\n\n' + turn.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def write_tokenizer(folder: pathlib.Path, chat: bool = True, **moved: int) -> pathlib.Path:
    """A byte-level BPE without merges; the mask is no registered mask_token, and Base has no chat tokens."""
    special = SPECIAL_IDS | (CHAT_IDS if chat else {})
    special |= {f"<|{name}|>": number for name, number in moved.items()}
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | special
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **ends)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture
def published_shape(tmp_path) -> pathlib.Path:
    """A checkpoint with LLaDA-8B's vocabulary and ids, and next to nothing in between."""
    config = llada.ModelConfig(d_model=4, n_layers=1, n_heads=1, n_kv_heads=1, mlp_hidden_size=4)
    hf.save_checkpoint(tmp_path / "published", config, random_params(config, "bfloat16"))
    return tmp_path / "published"


# --- run directories, as training leaves them ---


def lora_settings(rank: int) -> lora.LoraSettings:
    return lora.LoraSettings(rank=rank, alpha=6.0, targets=("q_proj", "attn_out", "ff_*"))


class RunDirectory:
    """Writes what ``igpo_jax.train`` writes: settings, configuration, tokenizer place and checkpoints of each stage."""

    def __init__(self, folder: pathlib.Path, checkpoint: str = "", sft_rank: int = 0, rl_rank: int = 0, **steps: int):
        base = RunSettings(seed=5)
        steady = dataclasses.replace(base.sft.optimizer, schedule="constant", warmup_steps=0)
        sft, rl = steps.get("sft", 3), steps.get("rl", 2)
        self.settings = dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, checkpoint=checkpoint),
            sft=dataclasses.replace(base.sft, steps=sft, lora=lora_settings(sft_rank), optimizer=steady),
            rl=dataclasses.replace(base.rl, steps=rl, lora=lora_settings(rl_rank), optimizer=steady),
        )
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.json").write_text(settings.to_json(self.settings))
        (folder / "model_config.json").write_text(json.dumps(SMALL.to_hf()))

    def start(self):
        """What a run from scratch begins from."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 0)
        return jax.jit(llada.init, static_argnums=(1, 2))(key, SMALL, jnp.float32)

    def train(self, stage: str, params, steps: tuple[int, ...] = (1,)):
        """Makes a stage's checkpoints with changed parameters, and returns the plain parameters after the last."""
        adapted = (self.settings.sft if stage == "sft" else self.settings.rl).lora
        frozen = params if adapted.rank else None
        trained = lora.init_adapters(jax.random.key(7), adapted, SMALL) if adapted.rank else params
        with Checkpoints(self.folder / "checkpoints" / stage) as checkpoints:
            for step in steps:
                trained = _moved(trained, step)
                state = TrainState(step=jnp.int32(step), trainable=trained, opt_state=optax.EmptyState(), frozen=None)
                checkpoints.save(step, state, {}, None, force=True)
        return merged_params(TrainState(step=0, trainable=trained, opt_state=(), frozen=frozen))


def _moved(tree, step: int):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(step)
    moved = [leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, moved)
