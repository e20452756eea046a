"""The digest of the weights: the same wherever they lie, another for any change; the judge's version."""

import jax
import numpy as np
import pytest

from igpo_jax.evaluation import identity
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rewards.version import judge_version
from tests.rl.rollout_cases import CONFIG, network


@pytest.fixture(scope="module")
def params():
    return network().params


def test_the_digest_does_not_depend_on_the_devices(params):
    mesh = make_mesh(MeshSettings(2, 2, 2))
    spread = jax.device_put(params, llada.shardings(CONFIG, mesh))
    assert identity.weights_digest(spread) == identity.weights_digest(params)


def test_the_digest_changes_with_one_bit_two_rows_or_the_dtype(params):
    before = identity.weights_digest(params)
    table = np.asarray(params["wte"]["weight"])
    nudged, swapped = table.copy(), table[[1, 0, *range(2, len(table))]]
    nudged[3, 4] = np.nextafter(nudged[3, 4], np.float32(np.inf))
    others = [params | {"wte": {"weight": jax.numpy.asarray(other)}} for other in (nudged, swapped)]
    others.append(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))
    assert len({before, *map(identity.weights_digest, others)}) == 4


def test_the_judges_version_is_a_digest():
    assert len(judge_version()) == 12 and identity.judge()["version"] == judge_version()
