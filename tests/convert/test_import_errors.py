"""Bad input of every kind stops at the door with one sentence, exit code 2, and nothing written."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert.conftest import edit_json

FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"
Q = "model.transformer.blocks.0.q_proj.weight"


@pytest.fixture
def sharded(golden_dir, tmp_path) -> pathlib.Path:
    return shutil.copytree(golden_dir / "tiny_llada_sharded", tmp_path / "checkpoint")


@pytest.fixture
def complaint(refused, tmp_path):
    """Imports a folder that cannot be imported."""

    def call(folder, *more) -> str:
        line = refused("import", "--source", folder, "--output", tmp_path / "out", *more)
        assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]
        return line

    return call


def change(shard: pathlib.Path, **edits) -> None:
    """Writes a shard anew with other tensors: name = array, or None to drop it."""
    tensors = load_file(shard)
    for name, values in edits.items():
        if values is None:
            del tensors[name]
        else:
            tensors[name] = values
    save_file(tensors, shard, metadata={"format": "pt"})


def test_missing_shard(sharded, complaint):
    (sharded / SECOND).unlink()
    assert f"{SECOND} does not exist, but the index names it; download the shard" in complaint(sharded)


@pytest.mark.parametrize("kept", [0, 5, 100, 100_000])
def test_truncated_file(sharded, complaint, kept):
    (sharded / SECOND).write_bytes((sharded / SECOND).read_bytes()[:kept])
    assert f"{SECOND} is not a whole safetensors file" in complaint(sharded)


def test_wrong_dtype(sharded, complaint):
    change(sharded / FIRST, **{Q: np.zeros((64, 64), np.float16)})
    assert f"tensor {Q} has dtype F16, expected float32 or bfloat16" in complaint(sharded)


def test_several_dtypes_need_a_choice(sharded, complaint, run, tmp_path):
    change(sharded / FIRST, **{Q: np.zeros((64, 64), np.float32)})
    edit_json(sharded / INDEX, metadata={})
    assert "pass --dtype to convert all to one dtype" in complaint(sharded)
    done = run("import", "--source", sharded, "--output", tmp_path / "out", "--dtype", "bfloat16")
    assert done.code == 0


def test_duplicated_tensor(sharded, complaint):
    change(sharded / SECOND, **{Q: load_file(sharded / FIRST)[Q]})
    line = complaint(sharded)
    assert f"tensor {Q} is duplicated" in line and FIRST in line and SECOND in line


def test_tensor_twice_in_one_header(sharded, complaint):
    """The library keeps one of two entries of one name; the gap that the other leaves gives it away."""
    contents = (sharded / FIRST).read_bytes()
    size = int.from_bytes(contents[:8], "little")
    header = contents[8 : 8 + size].decode().rstrip()
    entry = json.dumps(json.loads(header)[Q], separators=(",", ":"))
    other = header.replace("blocks.0.k_proj.weight", "blocks.0.q_proj.weight").encode()
    assert entry in header
    (sharded / FIRST).write_bytes(len(other).to_bytes(8, "little") + other + contents[8 + size :])
    assert f"{FIRST} is not a whole safetensors file" in complaint(sharded)


def test_unknown_tensor(sharded, complaint):
    name = "model.transformer.blocks.0.q_norm.weight"
    change(sharded / FIRST, **{name: np.zeros(64, "bfloat16")})
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, metadata={}, weight_map=weight_map | {name: FIRST})
    assert f"tensor {name} is not part of the model in config.json (did you mean" in complaint(sharded)


def test_missing_tensor(sharded, complaint):
    change(sharded / FIRST, **{Q: None})
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    del weight_map[Q]
    edit_json(sharded / INDEX, metadata={}, weight_map=weight_map)
    assert f"tensor {Q} is missing; the checkpoint is incomplete or config.json is another's" in complaint(sharded)


def test_index_names_a_tensor_that_the_file_lacks(sharded, complaint):
    change(sharded / FIRST, **{Q: None})
    assert f"{FIRST} lacks {Q}, which" in complaint(sharded)


def test_index_puts_a_tensor_into_another_file(sharded, complaint):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map=weight_map | {Q: THIRD})
    assert f"{THIRD} lacks {Q}, which" in complaint(sharded)


def test_index_does_not_list_a_tensor(sharded, complaint):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    del weight_map[Q]
    edit_json(sharded / INDEX, weight_map=weight_map)
    assert f"{FIRST} holds {Q}, which" in complaint(sharded)


def test_index_has_another_total(sharded, complaint):
    edit_json(sharded / INDEX, metadata={"total_size": 1})
    assert "says total_size 1, but the tensors have 377728 bytes" in complaint(sharded)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd"])
def test_index_points_out_of_the_folder(sharded, complaint, file):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map=weight_map | {Q: file})
    assert "expected a file beside it" in complaint(sharded)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is not valid JSON"), ("[]", "holds a list"), ("{}", "has no weight_map"), ('{"weight_map": {}}', "has no")],
)
def test_damaged_index(sharded, complaint, text, sentence):
    (sharded / INDEX).write_text(text)
    assert sentence in complaint(sharded)


def test_a_folder_that_is_no_checkpoint(tmp_path, complaint):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    assert "notes/config.json does not exist; pass the folder of a downloaded checkpoint" in complaint(
        tmp_path / "notes"
    )


def test_a_folder_that_is_not_there(tmp_path, complaint):
    assert "config.json does not exist" in complaint(tmp_path / "nowhere")


def test_config_without_weights(sharded, complaint):
    for path in sharded.glob("model*"):
        path.unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in complaint(sharded)


def test_another_architecture(sharded, complaint):
    edit_json(sharded / "config.json", model_type="llama")
    assert "model_type is 'llama', but only LLaDA checkpoints ('llada') are supported" in complaint(sharded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_type", "sequential"),
        ("alibi", True),
        ("rope", False),
        ("activation_type", "gelu"),
        ("layer_norm_type", "low_precision"),
        ("attention_layer_norm", True),
        ("block_group_size", 2),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("rope_scaling", {"factor": 2}),
    ],
)
def test_a_field_that_is_not_supported_is_named_with_its_value(sharded, complaint, field, value):
    edit_json(sharded / "config.json", **{field: value})
    line = complaint(sharded)
    assert field in line and repr(value) in line


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("n_layers", 2, "blocks.2.attn_norm.weight is not part of the model in config.json"),
        ("n_layers", 4, "blocks.3.attn_out.weight is missing"),
        ("n_kv_heads", 2, "k_proj.weight has shape (64, 64), but config.json says (32, 64)"),
        ("mlp_hidden_size", 64, "ff_out.weight has shape (64, 128), but config.json says (64, 64)"),
        ("embedding_size", 1024, "wte.weight has shape (512, 64), but config.json says (1024, 64)"),
        ("include_bias", True, "bias is missing"),
        ("weight_tying", True, "model.transformer.ff_out.weight is not part of the model"),
    ],
)
def test_config_of_another_model(sharded, complaint, field, value, sentence):
    edit_json(sharded / "config.json", **{field: value})
    if field == "include_bias":
        edit_json(sharded / "config.json", bias_for_layer_norm=False)
    assert sentence in complaint(sharded)


def test_unknown_dtype(sharded, complaint):
    assert "--dtype is 'float16', which is not a known choice" in complaint(sharded, "--dtype", "float16")


def test_output_exists(sharded, refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    line = refused("import", "--source", sharded, "--output", tmp_path / "out")
    assert "out exists already; choose another folder, or delete it first" in line
    assert (tmp_path / "out" / "precious").read_text() == "kept"


def test_output_under_a_file(sharded, refused, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in refused("import", "--source", sharded, "--output", tmp_path / "file" / "out")
