"""Commands run in this process, and small checkpoints for them: golden ones, a training run's, one that can chat."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convert import hf, importer
from igpo_jax import compare, evaluate, generate, score, settings
from igpo_jax.data import pipeline, templates, tokenizers
from igpo_jax.data.chain import every_word
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]

#: The adapter is tested where lm-evaluation-harness is installed, which is an extra.
collect_ignore = [] if importlib.util.find_spec("lm_eval") else ["test_harness.py"]


@pytest.fixture
def run(capfd):
    """Runs a command in this process: .code, .out and .err."""
    commands = {"compare": compare, "evaluate": evaluate, "generate": generate, "score": score}

    def call(name: str, *arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = commands[name].main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def refused(run):
    """Runs a command that must fail, and returns its one line of complaint."""

    def call(*arguments) -> str:
        done = run(*arguments)
        assert done.code == 2 and done.out == ""
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert done.err.splitlines()[-1] == line
        return line.removeprefix("error: ")

    return call


@pytest.fixture
def arrays(run, tmp_path):
    """Runs a command on arrays: writes them, calls it with --tokens and --output, and returns what it wrote."""

    def call(name: str, checkpoint: pathlib.Path, given: dict, *flags) -> dict[str, np.ndarray]:
        np.savez(tmp_path / "in.npz", **given)
        places = ("--tokens", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
        done = run(name, "--checkpoint", checkpoint, *places, *flags)
        assert done.code == 0, done.err
        with np.load(tmp_path / "out.npz") as found:
            return {key: found[key] for key in found.files}

    return call


@pytest.fixture(scope="session")
def imported(golden_dir, tmp_path_factory):
    """Folders that the importer made of both golden checkpoints."""
    made = {}
    for name in ("tiny_llada", "tiny_llada_sharded"):
        made[name] = tmp_path_factory.mktemp("imported") / name
        importer.import_checkpoint(golden_dir / name, made[name])
    return made


@pytest.fixture(scope="session")
def long_rows(golden_dir, tmp_path_factory):
    """The golden checkpoint with room for longer rows, which rotary positions do not mind."""
    folder = tmp_path_factory.mktemp("long") / "tiny_llada"
    shutil.copytree(golden_dir / "tiny_llada", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_sequence_length": 512}))
    return folder


def random_model(config: llada.ModelConfig):
    params = jax.jit(llada.init, static_argnums=1)(jax.random.key(3), config)
    params["ff_out"]["weight"] = 4 * params["ff_out"]["weight"]
    return params


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run directory of the quickstart, whose model has learnt nothing yet."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = dataclasses.replace(
        module.get_config(),
        prompt_length=48,
        sampler=Sampler(length=48, steps=24, block_length=16, temperature=1.0),
    )
    template = templates.get_template(chosen.template)
    texts = pipeline.tokenizer_texts(chosen.data, every_word(), template)
    words = tokenizers.build_tokenizer(chosen.tokenizer, texts)
    words.save(folder / "tokenizer")
    config = llada.ModelConfig(
        d_model=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=16,
        vocab_size=words.vocab_size,
        embedding_size=words.vocab_size,
        max_sequence_length=chosen.prompt_length + chosen.sampler.length,
        mask_token_id=words.mask_id,
        eos_token_id=words.eos_id,
        pad_token_id=words.pad_id,
    )
    (folder / "config.json").write_text(settings.to_json(chosen))
    (folder / "model_config.json").write_text(json.dumps(config.to_hf()))
    params = random_model(config)
    # A model that hardly ever ends, so that there is something to read.
    params["ff_out"]["weight"] = params["ff_out"]["weight"].at[:, words.eos_id].set(0.0)
    with Checkpoints(folder / "checkpoints" / "sft") as checkpoints:
        checkpoints.save(1, {"trainable": params}, {}, None, force=True)
    return folder


CHAT = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATE = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory):
    """A random model in Hugging Face layout with a byte-level tokenizer and LLaDA's chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate([*letters, *CHAT])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in CHAT])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=CHAT[0], eos_token=CHAT[1], pad_token=CHAT[1])
    fast.chat_template = TEMPLATE
    config = llada.ModelConfig(
        d_model=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=16,
        vocab_size=len(vocabulary),
        embedding_size=len(vocabulary),
        max_sequence_length=192,
        mask_token_id=vocabulary[CHAT[2]],
        eos_token_id=vocabulary[CHAT[1]],
        pad_token_id=vocabulary[CHAT[1]],
    )
    hf.save_checkpoint(folder, config, random_model(config))
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def golden_flags():
    """The sampler flags of a golden case."""
    names = {"length": "gen_length", "steps": "steps", "block-length": "block_length", "cfg": "cfg_scale"}
    return lambda case: [part for flag, key in names.items() for part in (f"--{flag}", str(case[key]))]
