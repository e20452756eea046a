import functools
import json
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from convert import hf, importer, layout
from convert.source import kind_of, load_model, open_parameters
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from tests.convert.conftest import SMALL, RunDirectory, edit_json, random_params, same_arrays, write_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def model(small, tmp_path):
    importer.import_checkpoint(small, tmp_path / "model")
    return tmp_path / "model"


def test_all_three_kinds_open_alike(small, model, tmp_path):
    made = RunDirectory(tmp_path / "run", str(small), rl=0)
    trained = made.train("sft", random_params(SMALL))
    for folder, kind, expected in [
        (small, "hf", random_params(SMALL)),
        (model, "model", random_params(SMALL)),
        (made.folder, "run", trained),
    ]:
        assert kind_of(folder) == kind
        config, params, tokenizer = load_model(folder)
        assert config == SMALL and tokenizer is None
        same_arrays(params, expected)
        mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
        _, sharded, _ = load_model(folder, mesh, "bfloat16")
        same_arrays(sharded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))
        places = jax.tree.map(lambda leaf: leaf.sharding, sharded)
        assert jax.tree.leaves(places) == jax.tree.leaves(llada.shardings(SMALL, mesh))
        config, lazy = open_parameters(folder)
        assert config == SMALL and set(lazy.shapes()) == {"/".join(path) for path in _paths(expected)}
        for place in layout.places(SMALL).values():
            whole = functools.reduce(lambda tree, name: tree[name], place.path.split("/"), expected)
            for rows in (layout.ALL, slice(3, 5)):
                np.testing.assert_array_equal(lazy.read(place, rows), whole[place.index(rows)])


def _paths(tree, path=()):
    for name, item in tree.items():
        yield from _paths(item, (*path, name)) if isinstance(item, dict) else [(*path, name)]


def test_the_tokenizer_comes_along(published_shape, tmp_path):
    write_tokenizer(published_shape)
    importer.import_checkpoint(published_shape, tmp_path / "model")
    assert [load_model(folder)[2].mask_id for folder in (published_shape, tmp_path / "model")] == [126336, 126336]


@pytest.mark.parametrize("path", ["nowhere", "empty", "other"])
def test_what_is_no_checkpoint(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a (folder|checkpoint)"):
        load_model(tmp_path / path)


def test_unknown_dtype(small):
    with pytest.raises(UserError, match="dtype is 'float16'"):
        load_model(small, dtype="float16")


# --- what does not fit is said by path, with its likely cause ---


def rewrite(model, tree) -> None:
    """Puts another tree in the place of a model's parameters."""
    shutil.rmtree(model / "params")
    ocp.PyTreeCheckpointer().save(model / "params", tree)


@pytest.mark.parametrize("reader", [load_model, open_parameters])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda tree: tree["blocks"].pop("up_proj"),
            ["missing: blocks/up_proj/weight", "The folder is incomplete; copy it again"],
        ),
        (
            lambda tree: tree["blocks"]["q_proj"].update(bias=np.zeros((2, 16), np.float32)),
            ["not expected: blocks/q_proj/bias", "The bias settings of config.json are not the checkpoint's"],
        ),
        (
            lambda tree: tree.pop("ff_out"),
            ["missing: ff_out/weight", "weight_tying of config.json is not the checkpoint's"],
        ),
        (
            lambda tree: tree["blocks"]["ff_proj"].update(weight=tree["blocks"]["ff_proj"]["weight"].swapaxes(1, 2)),
            ["(found float32[2, 24, 16], expected float32[2, 16, 24])", "Its matrices are transposed"],
        ),
        (
            lambda tree: tree["wte"].update(weight=np.zeros((30, 16), np.float32)),
            ["wte/weight (found float32[30, 16], expected float32[24, 16])", "config.json is another model's"],
        ),
        (
            lambda tree: tree.update({"0": tree.pop("blocks")}),
            ["not expected: 0/attn_norm/weight", "Its layers are stored one by one, but this format stacks them"],
        ),
    ],
)
def test_paths_that_do_not_fit(model, reader, change, parts):
    tree = jax.tree.map(np.asarray, load_model(model)[1])
    change(tree)
    rewrite(model, tree)
    with pytest.raises(UserError) as error:
        reader(model)
    for part in [str(model / "params"), *parts]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_manifest_of_another_dtype(model):
    edit_json(model / "manifest.json", dtype="bfloat16")
    with pytest.raises(UserError, match=r"found float32\[2, 16\], expected bfloat16.*Only dtypes differ"):
        load_model(model)


def test_a_manifest_of_another_format(model):
    edit_json(model / "manifest.json", format="igpo_jax model, version 9")
    for reader in (load_model, open_parameters):
        with pytest.raises(UserError, match="expected 'igpo_jax model, version 1'; import the model again"):
            reader(model)


@pytest.mark.parametrize("damage", ["metadata", "manifest", "data"])
def test_damaged_arrays(model, damage):
    params = model / "params"
    if damage == "metadata":
        (params / "_METADATA").write_text("{")
    elif damage == "manifest":
        (params / "manifest.ocdbt").write_bytes(b"nothing")
    else:
        for path in params.glob("ocdbt.process_0/d/*"):
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match=r"params cannot be read \(.*\); copy it or import it again"):
        load_model(model)
    with pytest.raises(UserError, match=r"params cannot be read \(.*\); copy it or import it again"):
        open_parameters(model)[1].read(layout.places(SMALL)["model.transformer.wte.weight"])


def test_more_than_a_mesh_can_divide(model):
    with pytest.raises(UserError, match=r"model.n_heads is 4, which does not divide over mesh.tensor 8"):
        load_model(model, make_mesh(MeshSettings(data=1, fsdp=1, tensor=8)))


HOST = """
import os, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import numpy as np
from convert.source import load_model
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

def bytes_read():
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])

before = bytes_read()
_, params, _ = load_model(sys.argv[1], make_mesh(MeshSettings(data=1, fsdp=4, tensor=2)), dtype=None)
leaves = jax.tree.leaves(params)
print(bytes_read() - before)
print(sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards))
"""


def test_each_host_reads_only_its_part(tmp_path):
    """Two processes with four devices each: either reads about half of the checkpoint."""
    config = llada.ModelConfig(**{**SMALL.__dict__, "d_model": 1024, "mlp_hidden_size": 2048})
    hf.save_checkpoint(tmp_path / "source", config, random_params(config, "bfloat16"))
    importer.import_checkpoint(tmp_path / "source", tmp_path / "model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", HOST, str(tmp_path / "model"), address]
    hosts = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    total = sum(leaf.size * 2 for leaf in jax.tree.leaves(llada.abstract(config)))
    for host in hosts:
        out, err = host.communicate(timeout=120)
        assert host.returncode == 0, err
        read, held = map(int, out.split()[-2:])
        assert total / 2 <= held <= 0.51 * total
        assert read < 0.7 * total


def test_the_hugging_face_reader_refuses_several_dtypes_too(small):
    tensors = hf.load_safetensors(small)
    name = "model.transformer.ln_f.weight"
    hf.save_file(tensors | {name: tensors[name].astype("bfloat16")}, small / "model.safetensors")
    with pytest.raises(UserError, match="pass --dtype to convert all to one dtype"):
        load_model(small, dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_model(small)[1])} == {jnp.dtype("float32")}


def test_training_starts_from_any_kind(small, model):
    """The field of the training settings that names a checkpoint goes through the same door."""
    from igpo_jax.data.tokenizers import TokenizerSettings
    from igpo_jax.diffusion.sampler import Sampler
    from igpo_jax.training import run
    from igpo_jax.training.run_settings import ModelSettings, RunSettings

    class Ids:
        mask_id, eos_id, vocab_size = SMALL.mask_token_id, SMALL.eos_token_id, SMALL.vocab_size

    def settings(folder):
        sampler = Sampler(length=32, block_length=32, steps=16, temperature=1.0)
        # The checkpoint has no tokenizer files, so one that is named stands for it.
        tokenizer = TokenizerSettings(kind="path", path="elsewhere")
        start = ModelSettings(checkpoint=str(folder))
        return RunSettings(model=start, tokenizer=tokenizer, prompt_length=16, sampler=sampler)

    mesh = make_mesh(MeshSettings(data=4, fsdp=2))
    for folder in (small, model):
        config, params = run._model(settings(folder), Ids(), mesh)
        assert config == SMALL
        same_arrays(params, random_params(SMALL))
    edit_json(model / "config.json", mask_token_id=3)
    with pytest.raises(UserError, match="has mask_token_id 3, but the tokenizer's is 19"):
        run._model(settings(model), Ids(), mesh)


def test_run_settings_are_read_as_plain_json(tmp_path):
    """A run of a later version, with fields that this one does not know, still opens."""
    made = RunDirectory(tmp_path / "run", rl=0)
    expected = made.train("sft", made.start())
    values = json.loads((made.folder / "config.json").read_text())
    (made.folder / "config.json").write_text(json.dumps(values | {"from_the_future": {"a": 1}}))
    same_arrays(load_model(made.folder)[1], expected)
