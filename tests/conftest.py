"""Every test runs on eight virtual CPU devices, set before any array exists."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden():
    """Loads ``tests/data/golden/NAME.npz`` as {case: {array name: array}}."""

    def load(name: str) -> dict[str, dict[str, np.ndarray]]:
        cases: dict[str, dict[str, np.ndarray]] = {}
        with np.load(DATA / "golden" / f"{name}.npz") as arrays:
            for key in arrays.files:
                case, _, field = key.partition("/")
                cases.setdefault(case, {})[field] = arrays[key]
        return cases

    return load


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """The folder with the golden checkpoints ``tiny_llada`` and ``tiny_llada_sharded``."""
    return DATA / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests start first: workers take whole files, and a long one at the end would run alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
