"""Names of slices, their links, and what is said where a name or a compiler is missing."""

import os
import subprocess
import sys

import pytest

from igpo_jax.errors import UserError
from igpo_jax.planning import topology


@pytest.mark.parametrize(
    ("name", "count", "platform"),
    [("v5e:8x8", 64, "tpu"), ("v5p:4x4x4", 64, "tpu"), ("v6e:2x4", 8, "tpu"), ("h100:8x8", 64, "gpu")],
)
def test_names(name, count, platform):
    found = topology.parse(name)
    assert (found.name, found.count, found.platform) == (name, count, platform)


@pytest.mark.parametrize("name", ["v6e:3x3", "v7x:8x8", "v6e", "h100:64", "", "v6e:8x8x1", "../v6e:8x8"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UserError) as error:
        topology.parse(name)
    assert f"'{name}'" in str(error.value)
    assert "v5p:2x2x1" in str(error.value) and "h100:1x1, 1x2" in str(error.value) and "\n" not in str(error.value)


def test_links_of_a_torus():
    """A v6e link carries 90 GB/s each way; an axis of 16 closes to a ring and can be used in both directions."""
    link = 9e10
    assert topology.parse("v6e:2x4").collective_bytes_per_second(8) == 2 * link
    assert topology.parse("v6e:16x16").collective_bytes_per_second(256) == 4 * link
    assert topology.parse("v6e:8x16").collective_bytes_per_second(16) == 2 * link
    assert topology.parse("v5p:4x4x4").collective_bytes_per_second(64) == 6 * link
    assert topology.parse("v5p:2x2x1").collective_bytes_per_second(4) == 2 * link


def test_links_of_hosts():
    """Inside a host NVLink's 450 GB/s; over hosts all eight 400 Gb/s adapters of a host work for each GPU."""
    assert topology.parse("h100:1x8").collective_bytes_per_second(8) == 4.5e11
    assert topology.parse("h100:8x8").collective_bytes_per_second(8) == 4.5e11
    assert topology.parse("h100:8x8").collective_bytes_per_second(64) == 8 * 5e10


def test_gpus_lend_jax_the_share_of_the_launch_scripts():
    assert topology.parse("h100:1x8").usable_gib == round(0.92 * 79.1, 2)
    assert topology.parse("v6e:2x4").usable_gib == 31.25


@pytest.mark.parametrize(("name", "line"), [("v6e:2x4", "plan-tpu"), ("h100:1x8", "plan-h100")])
def test_a_missing_compiler_comes_with_its_pip_line(name, line, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"pip install '\.\[{line}\]'$"):
        topology.open_devices(topology.parse(name))


def test_versions_name_what_is_missing():
    found = topology.versions(topology.parse("v6e:2x4"))
    assert list(found) == ["jax", "jaxlib", "libtpu"] and found["jax"][0].isdigit()


def test_the_environment_of_a_plain_process():
    code = """
import jax
from igpo_jax.planning import topology
topology.prepare_environment()
print(jax.config.jax_platforms, jax.devices()[0].platform)
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["cpu", "cpu"], done.stderr
