"""Where a completion ends."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from igpo_jax.rl.batch import RolloutBatch, UpdateBatch, completion_mask

EOS = 3


@settings(deadline=None)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)))
def test_completion_mask_ends_with_the_first_eos(tokens):
    mask = completion_mask(tokens, EOS)
    assert mask.dtype == bool
    for row, marks in zip(tokens.tolist(), mask.tolist(), strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        assert marks == [place < end for place in range(len(row))]


def test_batches_pass_through_jax_as_trees():
    fields = {name: np.zeros((2, 3)) for name in RolloutBatch.__dataclass_fields__}
    batch = UpdateBatch(RolloutBatch(**fields), *(np.zeros((2, 3)) for _ in range(4)))
    assert len(jax.tree.leaves(batch)) == len(fields) + 4
    halves = jax.tree.map(lambda x: x[:1], batch)
    assert isinstance(halves, UpdateBatch) and halves.rollout.hint_mask.shape == (1, 3)
