import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from convert import streaming
from convert.streaming import Piece, Slot

SLOTS = {
    "whole": Slot((3, 5), np.dtype("float32")),
    "inner": {"stacked": Slot((4, 2, 3), np.dtype("bfloat16"), stacked=True), "one": Slot((2, 7), np.dtype("int32"))},
}


def values(slot: Slot, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-99, 99, slot.shape).astype(slot.dtype)


TREE = jax.tree.map(values, SLOTS, {"whole": 1, "inner": {"stacked": 2, "one": 3}})


def pieces(order=range(4)) -> list[Piece]:
    layers = [Piece("inner/stacked", layer, TREE["inner"]["stacked"][layer]) for layer in order]
    return [
        *layers[:2],
        Piece("whole", None, TREE["whole"]),
        *layers[2:],
        Piece("inner/one", None, TREE["inner"]["one"]),
    ]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
def test_pieces_in_any_order_make_the_tree(tmp_path, order):
    streaming.write(tmp_path / "tree", SLOTS, iter(pieces(order)))
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "tree")
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(TREE)]


def test_stored_arrays_are_read_in_part(tmp_path):
    streaming.write(tmp_path / "tree", SLOTS, pieces())
    found = streaming.open_arrays(tmp_path / "tree")
    assert found["inner"]["stacked"].shape == (4, 2, 3) and found["inner"]["stacked"].dtype == np.dtype("bfloat16")
    np.testing.assert_array_equal(found["inner"]["stacked"][2], TREE["inner"]["stacked"][2])
    np.testing.assert_array_equal(found["whole"][...], TREE["whole"])
    np.testing.assert_array_equal(found["whole"][1:, 2], TREE["whole"][1:, 2])


@pytest.mark.parametrize("ocdbt", [True, False])
def test_arrays_that_orbax_itself_wrote(tmp_path, ocdbt):
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt))
    checkpointer.save(tmp_path / "tree", args=ocp.args.PyTreeSave(jax.tree.map(jax.numpy.asarray, TREE)))
    found = streaming.open_arrays(tmp_path / "tree")
    jax.tree.map(lambda stored, array: np.testing.assert_array_equal(stored[...], array), found, TREE)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda given: given[:-1], "no values came for inner/one"),
        (lambda given: given[1:], r"no values came for inner/stacked, layers \[0\]"),
        (lambda given: [*given, given[0]], "inner/stacked has no layer 0, or got it twice"),
        (lambda given: [Piece("inner/stacked", 4, given[0].values)], "inner/stacked has no layer 4"),
        (lambda given: [Piece("whole", None, np.zeros((5, 3), np.float32))], "whole takes float32"),
        (lambda given: [Piece("whole", None, np.zeros((3, 5), np.float64))], "whole takes float32"),
        (lambda given: [Piece("other", None, np.zeros(3))], "there is no slot other"),
    ],
)
def test_wrong_pieces_leave_nothing(tmp_path, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        streaming.write(tmp_path / "tree", SLOTS, wrong(pieces()))
    assert not (tmp_path / "tree").exists()


def test_a_chunk_is_small_enough_for_a_shard(tmp_path):
    slot = Slot((2, 1024, 2048), np.dtype("bfloat16"), stacked=True)
    layers = [Piece("w", layer, np.zeros(slot.shape[1:], slot.dtype)) for layer in range(2)]
    streaming.write(tmp_path / "tree", {"w": slot}, layers)
    metadata = ocp.PyTreeCheckpointer().metadata(tmp_path / "tree").item_metadata.tree["w"]
    assert metadata.storage.chunk_shape == (1, 512, 512)
