import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import llada, params
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

CONFIG = llada.ModelConfig(
    d_model=64,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    mlp_hidden_size=256,
    vocab_size=1000,
    embedding_size=1000,
    mask_token_id=999,
    eos_token_id=998,
    pad_token_id=998,
    include_bias=True,
    bias_for_layer_norm=True,
)


def _paths(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def drawn():
    return _paths(llada.init(jax.random.key(0), CONFIG))


def test_init_abstract_and_table_agree(drawn):
    abstract = _paths(llada.abstract(CONFIG, jnp.float32))
    table = _paths(llada.param_table(CONFIG))
    assert drawn.keys() == abstract.keys() == table.keys()
    for path, leaf in drawn.items():
        assert leaf.shape == abstract[path].shape == table[path].shape
        assert leaf.dtype == abstract[path].dtype
        assert len(table[path].axes) == leaf.ndim


def test_parameter_count_of_the_published_model():
    sizes = jax.tree.map(lambda spec: int(np.prod(spec.shape)), llada.param_table(llada.ModelConfig()))
    assert sum(jax.tree.leaves(sizes)) == 8_015_581_184


def _expected_std(path, layer):
    residual = 1 / np.sqrt(2 * (layer + 1))
    if path == "blocks/attn_out/weight":
        return 64**-0.5 * residual
    if path == "blocks/ff_out/weight":
        return 256**-0.5 * residual
    return 64**-0.5


def test_mitchell_statistics(drawn):
    """Truncated at three sigma, a normal keeps 98.66% of its standard deviation."""
    for path, leaf in drawn.items():
        if path.endswith("bias"):
            assert not leaf.any()
        elif "norm" in path or path.startswith("ln_f"):
            assert (leaf == 1).all()
        else:
            layers = leaf if path.startswith("blocks") else leaf[None]
            for index, layer in enumerate(np.asarray(layers, np.float64)):
                std = _expected_std(path, index)
                assert np.abs(layer).max() <= 3 * std * (1 + 1e-6)
                assert np.abs(layer).max() > 2.5 * std
                np.testing.assert_allclose(layer.std(), 0.98658 * std, rtol=5 / np.sqrt(2 * layer.size))
                assert abs(layer.mean()) < 5 * std / np.sqrt(layer.size)


def test_draws_differ_between_parameters_layers_and_keys(drawn):
    assert not np.allclose(drawn["blocks/k_proj/weight"], drawn["blocks/v_proj/weight"])
    assert not np.allclose(drawn["blocks/q_proj/weight"][0], drawn["blocks/q_proj/weight"][1])
    other = _paths(llada.init(jax.random.key(1), CONFIG))
    assert not np.allclose(drawn["wte/weight"], other["wte/weight"])


def test_draw_of_a_parameter_does_not_depend_on_the_others(drawn):
    fewer = {"include_bias": False, "bias_for_layer_norm": False, "weight_tying": True, "mlp_hidden_size": 128}
    config = llada.ModelConfig(**(CONFIG.__dict__ | fewer))
    small = _paths(llada.init(jax.random.key(0), config))
    assert "ff_out/weight" not in small
    np.testing.assert_array_equal(small["blocks/v_proj/weight"], drawn["blocks/v_proj/weight"])


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_parameters_are_born_sharded_with_the_same_values(drawn, shape):
    mesh = make_mesh(MeshSettings(*shape))
    places = llada.shardings(CONFIG, mesh)
    born = jax.jit(llada.init, static_argnums=1, out_shardings=places)(jax.random.key(0), CONFIG)
    for path, leaf in _paths(born).items():
        assert leaf.sharding == _paths(places)[path]
        np.testing.assert_allclose(leaf, drawn[path], rtol=1e-6, atol=1e-9)
    weight = born["blocks"]["ff_proj"]["weight"]
    assert weight.addressable_shards[0].data.shape == (4, 64 // shape[1], 256 // shape[2])


def test_abstract_carries_shardings():
    mesh = make_mesh(MeshSettings(2, 2, 2))
    abstract = llada.abstract(CONFIG, jnp.bfloat16, mesh)
    assert abstract["ff_out"]["weight"].sharding.spec == jax.P("fsdp", "tensor")
    assert abstract["ff_out"]["weight"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshSettings(1, 1, 8), r"model.n_heads is 4, which does not divide over mesh.tensor 8"),
        (MeshSettings(2, 1, 4), r"model.n_kv_heads is 2, which does not divide over mesh.tensor 4"),
    ],
)
def test_heads_that_do_not_divide(mesh, message):
    with pytest.raises(UserError, match=message):
        llada.shardings(CONFIG, make_mesh(mesh))


def test_sizes_that_do_not_divide_name_the_parameter():
    config = llada.ModelConfig(**(CONFIG.__dict__ | {"vocab_size": 1001, "embedding_size": 1001}))
    with pytest.raises(UserError, match=r"parameter wte/weight has size 1001 on axis 'vocab'.*mesh.tensor 2"):
        llada.shardings(config, make_mesh(MeshSettings(2, 2, 2)))


def test_init_in_another_dtype():
    low = params.init(jax.random.key(0), CONFIG, jnp.bfloat16)
    high = params.init(jax.random.key(0), CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), low, high)
