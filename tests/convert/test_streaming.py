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
    layers = [Piece("inner/stacked", (layer,), TREE["inner"]["stacked"][layer]) for layer in order]
    halves = [Piece("whole", (slice(None), part), TREE["whole"][:, part]) for part in (slice(3, 5), slice(0, 3))]
    return [
        *layers[:2],
        *halves,
        *layers[2:],
        Piece("inner/one", (slice(None),), TREE["inner"]["one"]),
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
        (lambda given: given[:-1], "inner/one lacks 14 values"),
        (lambda given: given[1:], "inner/stacked lacks 6 values"),
        (lambda given: [*given, given[0]], r"inner/stacked got its part \(0,\) twice"),
        (lambda given: [Piece("inner/stacked", (4,), given[0].values)], "Index 4 is outside valid range"),
        (
            lambda given: [Piece("whole", (slice(None),), np.zeros((5, 3), np.float32))],
            r"takes float32\(3, 5\) there, not float32",
        ),
        (
            lambda given: [Piece("whole", (slice(None),), np.zeros((3, 5), np.float64))],
            r"takes float32\(3, 5\) there, not float64",
        ),
        (lambda given: [Piece("other", (slice(None),), np.zeros(3))], "there is no slot other"),
    ],
)
def test_wrong_pieces_leave_nothing(tmp_path, wrong, sentence):
    with pytest.raises((ValueError, IndexError), match=sentence):
        streaming.write(tmp_path / "tree", SLOTS, wrong(pieces()))
    assert not (tmp_path / "tree").exists()


def test_chunks_are_even_and_small_enough_for_a_shard(tmp_path):
    slot = Slot((2, 1024, 770), np.dtype("bfloat16"), stacked=True)
    layers = [Piece("w", (layer,), np.zeros(slot.shape[1:], slot.dtype)) for layer in range(2)]
    streaming.write(tmp_path / "tree", {"w": slot}, layers)
    metadata = ocp.PyTreeCheckpointer().metadata(tmp_path / "tree").item_metadata.tree["w"]
    assert metadata.storage.chunk_shape == (1, 512, 385)
    assert [streaming.chunk(size) for size in (1, 512, 513, 4096, 126464)] == [1, 512, 257, 512, 512]
