import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]


def test_spec_maps_logical_to_mesh_axes():
    assert sharding.spec(("layer", "embed", "mlp")) == jax.P(None, "fsdp", "tensor")
    assert sharding.spec(("batch", "length", None)) == jax.P(("data", "fsdp"), None, None)


def test_spec_refuses_a_mesh_axis_used_twice():
    with pytest.raises(UserError, match=r"\['fsdp'\] are used twice .*'batch', 'embed'"):
        sharding.spec(("batch", "embed"))


def test_spec_refuses_an_unknown_name():
    with pytest.raises(UserError, match=r"'head' has no sharding rule \(did you mean 'heads'\?\)"):
        sharding.spec(("head",))


def test_calls_are_identities_without_a_mesh():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, ("batch", None)) is x
    assert sharding.active(("batch", None)) is None
    assert not sharding.under_mesh()


@pytest.mark.parametrize("shape", MESHES)
def test_constrain_lays_out_by_name(shape):
    with jax.set_mesh(make_mesh(MeshSettings(*shape))):
        laid = jax.jit(lambda x: sharding.constrain(x, ("batch", "mlp")))(jnp.ones((8, 4)))
        assert jax.typeof(laid).sharding.spec == jax.P(("data", "fsdp"), "tensor")


@pytest.mark.parametrize("shape", MESHES)
def test_gather_equals_indexing(shape):
    table = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    ids = np.random.default_rng(0).integers(0, 16, (8, 5)).astype(np.int32)

    def pick(table, ids):
        return sharding.gather(table, ids, ("batch", "length", None))

    np.testing.assert_array_equal(pick(table, ids), table[ids])
    mesh = make_mesh(MeshSettings(*shape))
    with jax.set_mesh(mesh):
        split = jax.device_put(table, sharding.named(mesh, ("vocab", "embed")))
        rows = sharding.shard_batch(ids, mesh)
        got = jax.jit(pick)(split, rows)
        assert jax.typeof(got).sharding.spec == jax.P(("data", "fsdp"), None, None)
        np.testing.assert_array_equal(sharding.to_host(got), table[ids])


def test_shard_batch_splits_rows_and_comes_back():
    mesh = make_mesh(MeshSettings(2, 2, 2))
    tree = {"tokens": np.arange(24).reshape(8, 3), "reward": np.arange(8.0, dtype=np.float32)}
    placed = sharding.shard_batch(tree, mesh)
    assert placed["tokens"].sharding == sharding.named(mesh, ("batch", None))
    assert placed["tokens"].addressable_shards[0].data.shape == (2, 3)
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(placed), tree)


def test_shard_batch_refuses_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"6 rows does not divide over 8 devices"):
        sharding.shard_batch(np.zeros((6, 2)), make_mesh())


def test_replicate_and_to_host():
    tree = {"a": np.arange(6.0).reshape(2, 3), "key": np.float32(2)}
    placed = sharding.replicate(tree, make_mesh())
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(placed), tree)


@pytest.mark.parametrize("shape", MESHES)
def test_scan_over_micro_batches(shape):
    x = np.arange(32 * 3, dtype=np.float32).reshape(32, 3)

    def total(x):
        parts = sharding.micro_batches(x, 4)
        return jax.lax.scan(lambda sums, part: (sums + part.sum(0), part), jnp.zeros(3), parts)

    mesh = make_mesh(MeshSettings(*shape))
    with jax.set_mesh(mesh):
        sums, parts = jax.jit(total)(sharding.shard_batch(x, mesh))
    np.testing.assert_array_equal(sharding.to_host(sums), x.sum(0))
    np.testing.assert_array_equal(sharding.to_host(parts), np.stack([x[part::4] for part in range(4)]))


def test_micro_batches_must_divide():
    with pytest.raises(UserError, match=r"6 rows does not divide into 4 micro-batches"):
        sharding.micro_batches(jnp.zeros((6, 2)), 4)
