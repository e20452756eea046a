import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import hf
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

CHECKPOINTS = ["tiny_llada", "tiny_llada_sharded"]


def _bytes(tensors):
    return {name: (tensor.dtype.name, tensor.shape, tensor.tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_round_trip_bit_for_bit(golden_dir, tmp_path, name):
    config, params = hf.load_checkpoint(golden_dir / name, dtype=None)
    hf.save_checkpoint(tmp_path, config, params)
    original = hf.load_safetensors(golden_dir / name)
    assert len(original) == 30
    assert _bytes(hf.load_safetensors(tmp_path)) == _bytes(original)
    config_again, params_again = hf.load_checkpoint(tmp_path, dtype=None)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_written_files_are_what_the_reference_reads(golden_dir, tmp_path):
    hf.save_checkpoint(tmp_path, *hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype=None))
    values = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((golden_dir / "tiny_llada_sharded" / "config.json").read_text())
    assert values == {name: value for name, value in original.items() if name != "transformers_version"}
    header = (tmp_path / "model.safetensors").read_bytes()[8:64]
    assert b'"__metadata__":{"format":"pt"}' in header


@pytest.mark.parametrize(
    "fields",
    [{"include_bias": True, "bias_for_layer_norm": True, "n_kv_heads": 2}, {"weight_tying": True}],
    ids=["biases", "tied"],
)
def test_round_trip_of_optional_tensors(tmp_path, fields):
    small = {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 24, "vocab_size": 20}
    small |= {"embedding_size": 24, "mask_token_id": 19, "eos_token_id": 18, "pad_token_id": 18}
    config = llada.ModelConfig(**(small | fields))
    params = jax.jit(llada.init, static_argnums=1)(jax.random.key(0), config)
    tensors = hf.params_to_hf(params, config)
    assert ("model.transformer.ff_out.weight" in tensors) != config.weight_tying
    assert ("model.transformer.blocks.1.k_proj.bias" in tensors) == config.include_bias
    assert tensors["model.transformer.blocks.1.k_proj.weight"].shape == (config.n_kv_heads * 4, 16)
    np.testing.assert_array_equal(
        tensors["model.transformer.blocks.1.ff_proj.weight"], params["blocks"]["ff_proj"]["weight"][1].T
    )
    hf.save_checkpoint(tmp_path, config, params)
    config_again, again = hf.load_checkpoint(tmp_path)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_dtypes_on_reading(golden_dir):
    for dtype, expected in [(None, "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")]:
        _, params = hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(expected)}
    with pytest.raises(UserError, match=r"dtype is 'float16'"):
        hf.load_checkpoint(golden_dir / "tiny_llada", dtype="float16")


def test_sharded_weights_are_the_rounded_ones(golden_dir):
    _, whole = hf.load_checkpoint(golden_dir / "tiny_llada")
    _, rounded = hf.load_checkpoint(golden_dir / "tiny_llada_sharded")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32), b),
        whole,
        rounded,
    )


def test_reading_onto_a_mesh(golden_dir):
    mesh = make_mesh(MeshSettings(2, 2, 2))
    config, params = hf.load_checkpoint(golden_dir / "tiny_llada_sharded", mesh=mesh)
    _, whole = hf.load_checkpoint(golden_dir / "tiny_llada_sharded")
    jax.tree.map(lambda leaf, place: None if leaf.sharding == place else 1 / 0, params, llada.shardings(config, mesh))
    jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.fixture
def tensors(golden_dir):
    return hf.load_safetensors(golden_dir / "tiny_llada")


@pytest.fixture
def config(golden_dir):
    return hf.load_config(golden_dir / "tiny_llada")


def test_missing_tensor(tensors, config):
    del tensors["model.transformer.blocks.1.up_proj.weight"]
    with pytest.raises(UserError, match=r"here: tensor model.transformer.blocks.1.up_proj.weight is missing"):
        hf.params_from_hf(tensors, config, source="here")


def test_unknown_tensor(tensors, config):
    tensors["model.transformer.blocks.3.up_proj.weight"] = np.zeros((128, 64), np.float32)
    with pytest.raises(UserError, match=r"blocks.3.up_proj.weight is not part of the model .* \(did you mean"):
        hf.params_from_hf(tensors, config)


def test_tensor_of_another_shape(tensors, config):
    name = "model.transformer.blocks.0.ff_proj.weight"
    tensors[name] = tensors[name].T
    with pytest.raises(UserError, match=r"ff_proj.weight has shape \(64, 128\), but config.json says \(128, 64\)"):
        hf.params_from_hf(tensors, config)


def test_tensors_of_several_dtypes(tensors, config):
    name = "model.transformer.blocks.2.ff_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    with pytest.raises(UserError, match=r"here: the tensors have several dtypes"):
        hf.params_from_hf(tensors, config, source="here")
    params = hf.params_from_hf(tensors, config, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


@pytest.fixture
def sharded(golden_dir, tmp_path):
    return shutil.copytree(golden_dir / "tiny_llada_sharded", tmp_path / "checkpoint")


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors does not exist, but the index names it"):
        hf.load_checkpoint(sharded)


def test_truncated_shard(sharded):
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors is not a whole safetensors file"):
        hf.load_checkpoint(sharded)


def test_shard_without_its_tensor(sharded):
    save_file({"other": np.zeros(2, np.float32)}, sharded / "model-00001-of-00003.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00003.safetensors lacks model.transformer"):
        hf.load_checkpoint(sharded)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config.json is not valid JSON"),
        ("config.json", "[]", r"config.json holds a list"),
        ("config.json", None, r"config.json does not exist"),
        ("model.safetensors.index.json", None, r"holds neither model.safetensors nor model.safetensors.index.json"),
        ("model.safetensors.index.json", "{}", r"index.json has no weight_map"),
    ],
)
def test_damaged_or_missing_files(sharded, file, content, message):
    if content is None:
        (sharded / file).unlink()
    else:
        (sharded / file).write_text(content)
    with pytest.raises(UserError, match=message):
        hf.load_checkpoint(sharded)
