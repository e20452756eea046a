import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import exporter, hf, importer, layerwise, parameters, reference, verifier
from convert.checkpoint_files import CheckpointFiles
from igpo_jax.models import llada
from tests.convert.conftest import SMALL, VARIANTS, edit_json, random_params


@pytest.fixture
def model(golden_dir, tmp_path):
    importer.import_checkpoint(golden_dir / "tiny_llada_sharded", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def source(golden_dir, tmp_path):
    return shutil.copytree(golden_dir / "tiny_llada_sharded", tmp_path / "source")


def results(done) -> dict[str, str]:
    """Check -> result, from the printed table."""
    lines = [line.split("  ") for line in done.out.splitlines()[2:] if "  " in line]
    return {parts[0].strip() or parts[1].strip(): parts[-1].strip() for parts in lines}


CHECKS = ["configuration", "names", "shapes", "parameter count", "dtypes", "tensor bytes", "source sha256", "logits"]


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_llada_sharded"])
def test_a_faithful_import(golden_dir, tmp_path, run, name):
    importer.import_checkpoint(golden_dir / name, tmp_path / "model")
    done = run("verify", "--source", golden_dir / name, "--converted", tmp_path / "model")
    assert done.code == 0
    assert results(done) == dict.fromkeys(CHECKS, "ok")
    assert done.out.splitlines()[-1] == f"{tmp_path / 'model'} is equal to {golden_dir / name}"


def test_a_faithful_export(golden_dir, model, tmp_path, run):
    exporter.export_model(model, tmp_path / "back")
    done = run("verify", "--source", golden_dir / "tiny_llada_sharded", "--converted", tmp_path / "back")
    assert done.code == 0 and list(results(done)) == [check for check in CHECKS if check != "source sha256"]


def test_a_conversion_that_was_asked_for(golden_dir, tmp_path, run):
    importer.import_checkpoint(golden_dir / "tiny_llada", tmp_path / "model", dtype="bfloat16")
    done = run("verify", "--source", golden_dir / "tiny_llada", "--converted", tmp_path / "model")
    assert done.code == 0 and "bfloat16 (converted at import from float32)" in done.out


def test_one_bit_in_one_tensor(source, model, run):
    shard = source / "model-00002-of-00003.safetensors"
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 1
    shard.write_bytes(contents)
    done = run("verify", "--source", source, "--converted", model)
    assert done.code == 1 and "DIFFERS from" in done.out.splitlines()[-1]
    found = results(done)
    assert found.pop("model.transformer.blocks.2.v_proj.weight") == "DIFFERENT"
    wrong = [check for check, result in found.items() if result != "ok"]
    assert wrong[:2] == ["tensor bytes", "source sha256"]
    assert "29 tensors equal" in done.out and "model-00002-of-00003.safetensors changed" in done.out


def test_zero_and_minus_zero_are_different(source, model, run):
    shard = source / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    name = "model.transformer.ln_f.weight"
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, shard, metadata={"format": "pt"})
    shutil.rmtree(model)
    importer.import_checkpoint(source, model)
    tensors[name] = -tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    done = run("verify", "--source", source, "--converted", model)
    assert done.code == 1 and results(done)["logits"] == "ok" and name in done.out


def test_not_a_number_is_equal_to_itself(source, tmp_path, run):
    shard = source / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    tensors["model.transformer.blocks.0.q_proj.weight"][0, 0] = np.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    importer.import_checkpoint(source, tmp_path / "model")
    found = results(run("verify", "--source", source, "--converted", tmp_path / "model"))
    assert found.pop("logits") == "DIFFERENT" and set(found.values()) == {"ok"}


def test_a_changed_config_file(source, model, run):
    edit_json(source / "config.json", rope_theta=10000.0)
    done = run("verify", "--source", source, "--converted", model)
    assert done.code == 1 and "rope_theta 500000.0 for 10000.0" in done.out and "config.json changed" in done.out
    found = results(done)
    assert found["configuration"] == "DIFFERENT" and found["tensor bytes"] == "ok" and "logits" not in found


def test_a_missing_source_file(source, model, run):
    (source / "generation_config.json").unlink()
    done = run("verify", "--source", source, "--converted", model)
    assert done.code == 1 and "generation_config.json missing" in done.out


def test_another_model(small, model, run):
    done = run("verify", "--source", small, "--converted", model)
    assert done.code == 1
    found = results(done)
    assert found["shapes"] == found["parameter count"] == found["tensor bytes"] == "DIFFERENT"


@pytest.mark.parametrize("fields", [{"include_bias": True}, {"weight_tying": True}])
def test_a_model_with_other_parameters(tmp_path, small, run, fields):
    config = llada.ModelConfig(**{**SMALL.__dict__, **fields})
    hf.save_checkpoint(tmp_path / "other", config, random_params(config))
    importer.import_checkpoint(tmp_path / "other", tmp_path / "model")
    done = run("verify", "--source", small, "--converted", tmp_path / "model")
    assert done.code == 1 and results(done)["names"] == "DIFFERENT"
    assert ("unknown" if "include_bias" in fields else "ff_out/weight missing") in done.out


def test_a_run_directory_is_refused(tmp_path, small, refused):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "model_config.json").touch()
    assert "is a run directory" in refused("verify", "--source", small, "--converted", tmp_path / "run")


def test_the_forward_pass_is_what_is_compared(source, model, monkeypatch, run):
    """A mistake in the project's own forward pass, which no comparison of bytes shows, is found."""
    rotary = layerwise.block.rotary_table
    monkeypatch.setattr(
        layerwise.block, "rotary_table", lambda positions, config: rotary(positions + positions // 5, config)
    )
    done = run("verify", "--source", source, "--converted", model)
    found = results(done)
    assert done.code == 1 and found.pop("logits") == "DIFFERENT" and set(found.values()) == {"ok"}


# --- the two forward passes ---

UNPADDED = ["rand_b2_t16", "masked_b3_t33", "long_b1_t96", "single_b1_t1", "allmask_b1_t20"]


@pytest.mark.parametrize("case", [*UNPADDED, "bf16_weights_f32_compute"])
def test_both_forward_passes_give_the_golden_logits(golden, golden_dir, case):
    folder = golden_dir / ("tiny_llada_sharded" if case.startswith("bf16") else "tiny_llada")
    expected, config = golden("forward")[case], json.loads((folder / "config.json").read_text())
    files = CheckpointFiles.open(folder)
    plain = reference.logits(files.read, files.__contains__, config, expected["input_ids"])
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, expected["logits"], rtol=0, atol=1e-4)
    model = hf.load_config(folder)
    ours = layerwise.logits(parameters.CheckpointParameters(files, model), model, expected["input_ids"])
    np.testing.assert_allclose(ours, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_both_forward_passes_agree_on_every_option(tmp_path, fields):
    config = llada.ModelConfig(**{**SMALL.__dict__, **fields})
    params = random_params(config)
    hf.save_checkpoint(tmp_path / "source", config, params)
    files = CheckpointFiles.open(tmp_path / "source")
    tokens = verifier.prompts(config)
    values = json.loads((tmp_path / "source" / "config.json").read_text())
    plain = reference.logits(files.read, files.__contains__, values, tokens)
    ours = layerwise.logits(parameters.TreeParameters(params), config, tokens)
    policy, model = llada.Policy(params), llada.Model(config)
    whole = llada.head_logits(policy, model, llada.forward(policy, model, jnp.asarray(tokens)))
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-4 * np.abs(plain).max())
    np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-5 * np.abs(plain).max())
