"""What the runs of whole recipes share: programs compiled once, whichever run or test process needs them first."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Keeps compiled programs on disk: every run makes its own jitted functions, and all runs make the same ones."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    _configure(wanted)
    yield
    _configure(before)


def _configure(values):
    for name, value in values.items():
        jax.config.update(name, value)
    # jax looks at the folder once, when it first compiles.
    compilation_cache.reset_cache()
