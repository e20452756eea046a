import hashlib
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from convert import exporter, hf, importer, model_dir
from convert.source import load_model
from igpo_jax import __version__
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from tests.convert.conftest import SMALL, VARIANTS, files_of, random_params, same_arrays

GOLDEN = ["tiny_llada", "tiny_llada_sharded"]


@pytest.mark.parametrize("name", GOLDEN)
def test_through_the_command_line_and_back_bit_for_bit(golden_dir, tmp_path, run, name):
    assert run("import", "--source", golden_dir / name, "--output", tmp_path / "model").code == 0
    # The sharded one was cut at 150 kB; no user needs a flag for that.
    exporter.export_model(tmp_path / "model", tmp_path / "cut", shard_bytes=150_000 if "sharded" in name else 10**9)
    assert files_of(tmp_path / "cut") == files_of(golden_dir / name)
    assert run("export", "--source", tmp_path / "model", "--output", tmp_path / "back").code == 0
    one, other = hf.load_safetensors(tmp_path / "back"), hf.load_safetensors(golden_dir / name)
    assert sorted(one) == sorted(other) and len(one) == 30
    for tensor in one:
        assert one[tensor].dtype == other[tensor].dtype and one[tensor].shape == other[tensor].shape
        assert one[tensor].tobytes() == other[tensor].tobytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_imported_is_what_the_reader_in_memory_reads(golden_dir, tmp_path, name):
    importer.import_checkpoint(golden_dir / name, tmp_path / "model")
    config, params, tokenizer = load_model(tmp_path / "model", dtype=None)
    expected_config, expected = hf.load_checkpoint(golden_dir / name, dtype=None)
    assert config == expected_config and tokenizer is None
    same_arrays(params, expected)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 2, 2), (1, 4, 2)])
def test_any_mesh_gets_the_same_arrays(golden_dir, tmp_path, sizes):
    importer.import_checkpoint(golden_dir / "tiny_llada_sharded", tmp_path / "model")
    mesh = make_mesh(MeshSettings(*sizes), jax.devices()[: np.prod(sizes)])
    config, params, _ = load_model(tmp_path / "model", mesh, dtype=None)
    _, expected = hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype=None)
    same_arrays(params, expected)
    assert jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding, params)) == jax.tree.leaves(
        llada.shardings(config, mesh)
    )


def test_manifest(golden_dir, tmp_path):
    source = golden_dir / "tiny_llada_sharded"
    importer.import_checkpoint(source, tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest == model_dir.read_manifest(tmp_path / "model")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    assert {entry["name"]: entry["sha256"] for entry in manifest.pop("files")} == digests and len(digests) == 6
    assert manifest == {
        "format": "igpo_jax model, version 1",
        "converter": f"igpo_jax {__version__}",
        "source": {"folder": str(source.absolute())},
        "source_dtypes": ["bfloat16"],
        "dtype": "bfloat16",
        "tensors": 30,
        "parameters": 188_864,
    }
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "model" / file).read_bytes() == (source / file).read_bytes()


def test_plain_orbax_restores_it(golden_dir, tmp_path):
    importer.import_checkpoint(golden_dir / "tiny_llada", tmp_path / "model")
    _, expected = hf.load_checkpoint(golden_dir / "tiny_llada")
    for checkpointer in (ocp.PyTreeCheckpointer(), ocp.StandardCheckpointer()):
        same_arrays(checkpointer.restore(tmp_path / "model" / "params"), jax.tree.map(np.asarray, expected))


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_option_of_the_configuration(tmp_path, fields):
    config = llada.ModelConfig(**{**SMALL.__dict__, **fields})
    params = random_params(config, "bfloat16")
    hf.save_checkpoint(tmp_path / "source", config, params)
    importer.import_checkpoint(tmp_path / "source", tmp_path / "model")
    found_config, found, _ = load_model(tmp_path / "model", dtype=None)
    assert found_config == config
    same_arrays(found, params)
    exporter.export_model(tmp_path / "model", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "source")


def test_conversion_to_another_dtype(golden_dir, tmp_path, run):
    """Rounding to bfloat16 gives exactly the rounded weights that the sharded checkpoint holds."""
    source = golden_dir / "tiny_llada"
    assert run("import", "--source", source, "--output", tmp_path / "model", "--dtype", "bfloat16").code == 0
    _, params, _ = load_model(tmp_path / "model", dtype=None)
    same_arrays(params, hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype=None)[1])
    manifest = model_dir.read_manifest(tmp_path / "model")
    assert (manifest["source_dtypes"], manifest["dtype"]) == (["float32"], "bfloat16")
    done = run("export", "--source", tmp_path / "model", "--output", tmp_path / "wide", "--dtype", "float32")
    assert done.code == 0 and "float32" in done.out
    assert {tensor.dtype for tensor in hf.load_safetensors(tmp_path / "wide").values()} == {np.dtype("float32")}


def test_config_names_the_dtype_it_was_converted_to(small, tmp_path):
    assert json.loads((small / "config.json").read_text())["torch_dtype"] == "float32"
    importer.import_checkpoint(small, tmp_path / "model", dtype="bfloat16")
    exporter.export_model(tmp_path / "model", tmp_path / "back", dtype="float32")
    narrow, wide = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "back"))
    assert narrow["torch_dtype"] == "bfloat16" and wide["torch_dtype"] == "float32"
    assert wide == json.loads((small / "config.json").read_text())


def test_a_checkpoint_without_tokenizer_gets_one_notice(small, tmp_path, run):
    done = run("import", "--source", small, "--output", tmp_path / "model")
    assert done.code == 0 and done.out.count("notice: the source has no tokenizer files") == 1
    assert not (tmp_path / "model" / "tokenizer").exists()


def test_loading_converts_while_it_reads(golden_dir, tmp_path):
    importer.import_checkpoint(golden_dir / "tiny_llada_sharded", tmp_path / "model")
    _, wide, _ = load_model(tmp_path / "model", dtype="float32")
    same_arrays(wide, hf.load_checkpoint(golden_dir / "tiny_llada_sharded", dtype="float32")[1])
