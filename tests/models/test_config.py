import dataclasses
import json

import pytest

from igpo_jax.errors import UserError
from igpo_jax.models.config import Compute, Model, ModelConfig


@pytest.fixture
def values(golden_dir):
    return json.loads((golden_dir / "tiny_llada" / "config.json").read_text())


def test_reads_the_checkpoint(values):
    config = ModelConfig.from_hf(values, "config.json")
    assert (config.d_model, config.n_layers, config.n_heads, config.head_dim) == (64, 3, 4, 16)
    assert (config.mlp_hidden_size, config.vocab_size, config.embedding_size) == (128, 512, 512)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (500, 501, 501)
    assert (config.rope_theta, config.rms_norm_eps, config.max_sequence_length) == (500000.0, 1e-5, 256)


def test_defaults_are_the_published_8b_shape():
    config = ModelConfig()
    assert (config.d_model, config.n_layers, config.mlp_hidden_size, config.embedding_size) == (4096, 32, 12288, 126464)


def test_round_trip_and_completeness(values):
    config = ModelConfig.from_hf(values)
    written = config.to_hf()
    assert ModelConfig.from_hf(written) == config
    assert written == {
        name: value for name, value in values.items() if name not in ("torch_dtype", "transformers_version")
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("activation_type", "swiglu"),
        ("layer_norm_type", "low_precision"),
        ("layer_norm_with_affine", False),
        ("attention_layer_norm", True),
        ("rope", False),
        ("rope_full_precision", False),
        ("alibi", True),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("attention_dropout", 0.1),
        ("residual_dropout", 0.1),
        ("embedding_dropout", 0.1),
        ("init_fn", "normal"),
        ("init_cutoff_factor", 2.0),
        ("use_cache", True),
        ("rope_scaling", {"type": "linear"}),
    ],
)
def test_unsupported_fields_are_refused_by_name_and_value(values, field, value):
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(values | {field: value}, "somewhere/config.json")
    assert str(error.value).startswith(f"somewhere/config.json: {field} ")
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("field", ["d_model", "rope_theta", "weight_tying", "mask_token_id", "block_type", "rope"])
def test_missing_fields_are_named(values, field):
    del values[field]
    with pytest.raises(UserError, match=rf"config.json: {field} missing"):
        ModelConfig.from_hf(values)


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        ({"n_kv_heads": 2}, 2),
        ({"n_kv_heads": None}, 4),
        ({"n_kv_heads": None, "multi_query_attention": True}, 1),
        ({"n_kv_heads": None, "multi_query_attention": False}, 4),
        ({"n_kv_heads": 1, "multi_query_attention": True}, 1),
    ],
)
def test_kv_heads_follow_the_reference(values, changes, kv_heads):
    assert ModelConfig.from_hf(values | changes).n_kv_heads == kv_heads


def test_contradictory_kv_heads(values):
    with pytest.raises(UserError, match=r"multi_query_attention is True but n_kv_heads is 2"):
        ModelConfig.from_hf(values | {"n_kv_heads": 2, "multi_query_attention": True})


def test_null_fields_are_filled_in(values):
    nulls = {"mlp_hidden_size": None, "embedding_size": None, "bias_for_layer_norm": None, "include_bias": True}
    config = ModelConfig.from_hf(values | nulls)
    assert (config.mlp_hidden_size, config.embedding_size, config.bias_for_layer_norm) == (256, 512, True)
    assert ModelConfig.from_hf(values | {"bias_for_layer_norm": None}).bias_for_layer_norm is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, r"model.d_model is 0"),
        ({"d_model": 66}, r"model.d_model is 66, expected a multiple of model.n_heads 4"),
        ({"n_kv_heads": 3}, r"model.n_heads is 4, expected a multiple of model.n_kv_heads 3"),
        ({"d_model": 60}, r"d_model / model.n_heads is 15"),
        ({"embedding_size": 500}, r"model.embedding_size is 500"),
        ({"mask_token_id": 512}, r"model.mask_token_id is 512"),
        ({"eos_token_id": -1}, r"model.eos_token_id is -1"),
        ({"d_model": "64"}, r"d_model is '64', expected int"),
        ({"include_bias": 1}, r"include_bias is 1, expected bool"),
        ({"mask_token_id": None}, r"mask_token_id is None, expected int"),
    ],
)
def test_impossible_shapes_name_file_and_field(values, changes, message):
    with pytest.raises(UserError, match=message) as error:
        ModelConfig.from_hf(values | changes, "here.json")
    assert str(error.value).startswith("here.json: ")


def test_model_is_hashable_and_compares_by_value(values):
    one, two = (Model(ModelConfig.from_hf(values), Compute(dtype="bfloat16")) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != dataclasses.replace(two, compute=Compute())


@pytest.mark.parametrize(("field", "value"), [("dtype", "float16"), ("remat", "everything"), ("attention", "flash")])
def test_compute_names_are_checked(field, value):
    with pytest.raises(UserError, match=rf"compute.{field} is '{value}'"):
        Compute(**{field: value})
