import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.rl.advantages import group_advantages, zero_spread


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        (
            [3.75, 0.75, 0.75, 0.5, 0, 0.25, 0.75, 0.25],
            [2.875, -0.125, -0.125, -0.375, -0.875, -0.625, -0.125, -0.625],
        ),
        ([1, 1, 1, 0, 0, 0, 0, 0], [0.625] * 3 + [-0.375] * 5),
        ([3.75] * 4 + [0.75] * 4, [1.5] * 4 + [-1.5] * 4),
        ([3.75] + [0.75] * 7, [2.625] + [-0.375] * 7),
    ],
)
def test_worked_groups(rewards, expected):
    """Worked example: format and correctness rewards, binary three of eight, rescued groups."""
    advantages = group_advantages(np.array(rewards), 8)
    assert advantages.dtype == np.float32
    np.testing.assert_array_equal(advantages, np.array(expected, np.float32))


def test_groups_do_not_mix_and_order_is_kept():
    rewards = np.random.default_rng(0).normal(size=24)
    whole = group_advantages(rewards, 6)
    for group in range(4):
        np.testing.assert_array_equal(whole[6 * group : 6 * group + 6], group_advantages(rewards[6 * group :][:6], 6))
    np.testing.assert_allclose(whole.reshape(4, 6).sum(axis=1), 0, atol=1e-6)


def test_equal_rewards_give_exact_zeros_whatever_their_mean_rounds_to():
    rewards = np.array([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.0, 1.0, 0.0])
    advantages = group_advantages(rewards, 3)
    np.testing.assert_array_equal(advantages[:6], 0)
    np.testing.assert_array_equal(zero_spread(rewards, 3), [True, True, False])


def test_recorded_rollout(golden):
    case = golden("rollout")["rollout"]
    advantages = group_advantages(case["rewards"].sum(axis=1), int(case["num_generations"]))
    np.testing.assert_allclose(advantages, case["advantages"], atol=1e-6)


@pytest.mark.parametrize("size", [0, 4])
def test_rows_must_form_groups(size):
    with pytest.raises(UserError, match=f"groups of {size}"):
        group_advantages(np.zeros(6), size)
    with pytest.raises(UserError, match="whole groups"):
        zero_spread(np.zeros(6), size)
