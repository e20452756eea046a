"""Every kind of model that a config may describe, against the plain numpy forward pass."""

import jax
import numpy as np
import pytest

from igpo_jax.models import llada

VARIANTS = {
    "plain": {},
    "grouped_heads": {"n_kv_heads": 2},
    "one_kv_head": {"n_kv_heads": 1},
    "all_biases": {"include_bias": True, "bias_for_layer_norm": True},
    "qkv_biases": {"include_qkv_bias": True, "n_kv_heads": 2},
    "norm_biases": {"bias_for_layer_norm": True},
    "tied": {"weight_tying": True},
    "tied_with_biases": {"weight_tying": True, "include_bias": True, "bias_for_layer_norm": True},
    "larger_embedding": {"embedding_size": 48},
    "other_constants": {"rope_theta": 100.0, "rms_norm_eps": 0.1},
    "one_layer": {"n_layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_numpy(make_model, numpy_logits, run_logits, variant):
    model, policy = make_model(**VARIANTS[variant])
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 40, (3, 13)).astype(np.int32)
    valid = np.arange(13)[None] < np.array([[13], [5], [1]])
    expected = numpy_logits(policy.params, model.config, tokens, valid)
    assert expected.shape == (3, 13, model.config.embedding_size)
    np.testing.assert_allclose(run_logits(policy, model, tokens, valid=valid), expected, rtol=0, atol=1e-4)


def test_tokens_beyond_the_vocabulary_reach_their_row(make_model, run_logits):
    model, policy = make_model(embedding_size=48, mask_token_id=47)
    low, high = (run_logits(policy, model, np.full((1, 4), token, np.int32)) for token in (46, 47))
    assert np.abs(low - high).max() > 1e-2


def test_head_takes_any_leading_shape(make_model):
    model, policy = make_model(include_bias=True)
    hidden = np.random.default_rng(0).standard_normal((2, 3, 5, 32)).astype(np.float32)
    whole = llada.head_logits(policy, model, hidden)
    single = llada.head_logits(policy, model, hidden[1, 2, 4])
    assert whole.shape == (2, 3, 5, 40)
    np.testing.assert_allclose(single, whole[1, 2, 4], rtol=0, atol=1e-5)


def test_padding_and_neighbours_leave_a_row_alone(make_model, run_logits):
    model, policy = make_model(n_kv_heads=2)
    rng = np.random.default_rng(2)
    row = rng.integers(0, 40, (1, 9)).astype(np.int32)
    alone = run_logits(policy, model, row)[0]
    padded = rng.integers(0, 40, (3, 16)).astype(np.int32)
    valid = np.zeros((3, 16), bool)
    positions = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    padded[0, :9], valid[0, :9] = row, True  # padded on the right
    padded[1, 7:], valid[1, 7:] = row, True  # padded on the left, with the positions of the row
    positions[1, 7:] = np.arange(9)
    padded[2, ::2][:8], valid[2] = row[0, :8], True  # another row
    logits = run_logits(policy, model, padded, positions=positions, valid=valid)
    np.testing.assert_allclose(logits[0, :9], alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[1, 7:], alone, rtol=0, atol=1e-5)


def test_order_in_memory_does_not_matter_given_positions(make_model, run_logits):
    model, policy = make_model()
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 40, (2, 12)).astype(np.int32)
    shuffle = rng.permutation(12)
    positions = np.broadcast_to(shuffle.astype(np.int32), (2, 12))
    logits = run_logits(policy, model, tokens[:, shuffle], positions=positions)
    np.testing.assert_allclose(logits, run_logits(policy, model, tokens)[:, shuffle], rtol=0, atol=1e-5)


def test_rows_without_batch_neighbours(make_model, run_logits):
    model, policy = make_model()
    tokens = np.random.default_rng(4).integers(0, 40, (6, 8)).astype(np.int32)
    together = run_logits(policy, model, tokens)
    apart = np.concatenate([run_logits(policy, model, tokens[row : row + 1]) for row in range(6)])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), np.asarray(together)))
