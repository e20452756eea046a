"""Batches of rows of like length: the same rows as without them, few widths, a function of seed and step."""

import dataclasses

import numpy as np
import pytest

from igpo_jax.data import Example
from igpo_jax.data.buckets import WINDOW, Batches, Width
from igpo_jax.data.pipeline import Encoded, batch_indices
from igpo_jax.errors import UserError

P, C, EOS = 64, 96, 0


def encoded(count=200, seed=0):
    """Rows whose prompt and completion lengths are those of a skewed data set."""
    rng = np.random.default_rng(seed)
    prompts = np.minimum(P, 5 + rng.geometric(0.08, count))
    completions = np.minimum(C, 3 + rng.geometric(0.05, count))
    completion_mask = np.arange(C) < completions[:, None]
    return Encoded(
        prompt_tokens=np.where(np.arange(P) < prompts[:, None], 5, EOS).astype(np.int32),
        prompt_mask=np.arange(P) < prompts[:, None],
        completion_tokens=np.where(np.arange(C) < completions[:, None] - 1, 7, EOS).astype(np.int32),
        completion_mask=completion_mask,
        examples=tuple(Example(str(n), "q", "a", "r", "s") for n in range(count)),
        traces=(),
        report={},
    )


ROWS = encoded()


def batches(buckets=4, padding="batch", size=8, seed=0, rows=ROWS):
    return Batches(rows, size, seed, buckets, padding)


def test_one_bucket_is_the_plain_stream():
    plain = batches(1, "canvas")
    assert plain.widths == (Width(P, C),)
    for step in (0, 3, 77):
        rows = plain.rows(step)
        np.testing.assert_array_equal(rows, batch_indices(len(ROWS), 8, 0, step))
        arrays = plain.arrays(step)
        np.testing.assert_array_equal(arrays["completion_tokens"], ROWS.completion_tokens[rows])
        np.testing.assert_array_equal(arrays["prompt_mask"], ROWS.prompt_mask[rows])
        assert arrays["row_ids"].tolist() == list(range(8))


@pytest.mark.parametrize("padding", ["canvas", "batch"])
@pytest.mark.parametrize(("buckets", "size"), [(2, 8), (4, 8), (8, 8), (3, 25), (4, 64)])
def test_a_window_holds_the_rows_of_the_plain_stream(padding, buckets, size):
    made = batches(buckets, padding, size)
    window = max(1, min(WINDOW, len(ROWS) // size))
    for start in (0, window, 5 * window):
        found = np.concatenate([made.rows(step) for step in range(start, start + window)])
        plain = np.concatenate([batch_indices(len(ROWS), size, 0, step) for step in range(start, start + window)])
        np.testing.assert_array_equal(np.sort(found), np.sort(plain))


def test_every_row_comes_once_an_epoch():
    made = batches(size=25)
    epochs = np.concatenate([made.rows(step) for step in range(24)]).reshape(3, 200)
    assert (np.sort(epochs, axis=1) == np.arange(200)).all()
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_is_a_function_of_seed_and_step():
    steps = [70, 3, 0, 41, 3]
    first, again = batches(), batches()
    for step in steps:
        np.testing.assert_array_equal(first.rows(step), again.rows(step))
    assert any((first.rows(step) != batches(seed=1).rows(step)).any() for step in steps)
    widths = [first.width(first.rows(step)).total for step in range(25)]
    assert widths != sorted(widths), "narrow and wide batches come in random order"


@pytest.mark.parametrize("padding", ["canvas", "batch"])
def test_widths_hold_their_rows_and_are_few(padding):
    made = batches(3, padding)
    assert 1 < len(made.widths) <= 3
    assert [width.total for width in made.widths] == sorted(width.total for width in made.widths)
    seen = set()
    for step in range(25):
        arrays, rows = made.arrays(step), made.rows(step)
        shape = Width(arrays["prompt_tokens"].shape[1], arrays["completion_tokens"].shape[1])
        seen.add(shape)
        assert arrays["prompt_mask"].sum() == ROWS.prompt_mask[rows].sum(), "no prompt is cut"
        cut = ROWS.completion_mask[rows].sum(axis=1)
        assert (cut <= shape.completion).all(), "no completion and no first EOS is cut"
        if padding == "canvas":
            assert shape.completion == C
        filler = np.arange(shape.completion) >= cut[:, None]
        assert (arrays["completion_tokens"][filler] == EOS).all()
    assert seen <= set(made.widths) and len(seen) > 1


def test_more_buckets_leave_less_filler():
    shares = [batches(count).report()["filler_share"] for count in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.7 * shares[0]
    report = batches(4).report()
    assert sum(width["rows"] for width in report["widths"]) == 200
    used = ROWS.prompt_mask.sum() + ROWS.completion_mask.sum()
    assert report["filler_share_without"] == round(1 - used / (200 * (P + C)), 4)


def test_bucket_limits_are_the_best_ones():
    """Against every choice of two limits, where rows have a few lengths and widths need no rounding."""
    lengths = np.repeat([16, 32, 48, 64], [9, 1, 5, 3])
    prompts, completions = np.arange(P) < np.full((18, 1), 16), np.arange(C) < lengths[:, None]
    rows = dataclasses.replace(encoded(18), prompt_mask=prompts, completion_mask=completions)
    costs = {}
    for limit in (16, 32, 48):
        low = (lengths <= limit).sum()
        costs[limit] = low * (16 + limit) + (18 - low) * (16 + 64)
    best = min(costs, key=costs.get)
    made = Batches(rows, 2, 0, 2, "batch")
    assert [width.completion for width in made.widths] == [best, 64]


def test_a_process_takes_its_part_of_every_batch():
    made = batches()
    whole, parts = made.arrays(5), [made.arrays(5, part) for part in (slice(0, 4), slice(4, 8))]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_arrays_to_compile_for():
    made = batches()
    for width in made.widths:
        arrays = made.example(width)
        assert arrays["prompt_tokens"].shape == (8, width.prompt)
        assert arrays["completion_tokens"].shape == (8, width.completion)


def test_few_rows():
    made = batches(size=16, rows=encoded(5))
    assert np.bincount(np.concatenate([made.rows(step) for step in range(5)]), minlength=5).tolist() == [16] * 5


def test_settings():
    with pytest.raises(UserError, match=r"sft.length_buckets is 0"):
        batches(0)
    with pytest.raises(UserError, match=r"sft.padding is 'longest'"):
        batches(2, "longest")
