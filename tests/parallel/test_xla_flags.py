"""Flag bundles: shell lines that a shell reads back, what the user set stays, and every flag known to the compilers.

XLA parses GPU flags in a CPU build as well, so those are tried by default. libtpu's flags, and compiling for H100s with
the CUDA plugin's own copy of XLA, need their wheels: marked aot.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from igpo_jax.errors import UserError
from igpo_jax.parallel import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
GPU = [name for name, values in xla_flags.BUNDLES.items() if "XLA_FLAGS" in values]
TPU = [name for name, values in xla_flags.BUNDLES.items() if "LIBTPU_INIT_ARGS" in values]

#: Every TPU bundle with the topologies that it is for.
ON_CHIPS = [
    (topology, bundle)
    for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
    for bundle in TPU
    if bundle.startswith(("tpu", topology[:3]))
]

COMPILE = "import jax; print(jax.jit(lambda x: x @ x)(jax.numpy.ones((4, 4))).sum())"

#: Gathers of weights and sums of gradients, in a loop over layers, for devices that are not here.
COMPILE_FAR = """
import sys
import jax, numpy as np
from tests.topologies import far_mesh
mesh = far_mesh(sys.argv[1], (2, 2, 1))
def shape(*sizes, spec):
    return jax.ShapeDtypeStruct(sizes, np.float32, sharding=jax.NamedSharding(mesh, spec))
layers, rows = shape(4, 512, 512, spec=jax.P(None, "fsdp")), shape(256, 512, spec=jax.P(("data", "fsdp")))
def loss(layers, rows):
    def layer(x, weight):
        return jax.nn.relu(x @ jax.reshard(weight, jax.P())), None
    return jax.lax.scan(layer, rows, layers)[0].sum()
with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(layers, rows).compile().as_text()
print("all-gather" in text)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with the given variables; an unknown flag ends it."""
    variables = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    variables |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("bundle", GPU)
def test_xla_knows_every_gpu_flag(bundle):
    done = run(COMPILE, **xla_flags.environment(bundle, {}))
    assert (done.returncode, done.stdout) == (0, "64.0\n"), done.stderr[-500:]


def test_an_unknown_flag_would_have_ended_the_process():
    done = run(COMPILE, XLA_FLAGS="--xla_gpu_enable_no_such_thing=true")
    assert done.returncode != 0 and "xla_gpu_enable_no_such_thing" in done.stderr


@pytest.mark.aot
@pytest.mark.parametrize(("topology", "bundle"), ON_CHIPS, ids="-".join)
def test_libtpu_compiles_with_every_flag(bundle, topology):
    done = run(COMPILE_FAR, topology, **xla_flags.environment(bundle, {}))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-500:]


@pytest.mark.aot
def test_an_unknown_flag_ends_libtpu():
    done = run(COMPILE_FAR, "v5e:2x2", LIBTPU_INIT_ARGS="--xla_tpu_enable_no_such_thing=true")
    assert done.returncode != 0 and "xla_tpu_enable_no_such_thing" in done.stderr


@pytest.mark.aot
@pytest.mark.parametrize("bundle", GPU)
def test_the_cuda_plugin_compiles_with_every_flag(bundle):
    done = run(COMPILE_FAR, "h100", **xla_flags.environment(bundle, {}))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-500:]


def test_a_bundle_names_no_flag_twice():
    for values in xla_flags.BUNDLES.values():
        names = [flag.split("=")[0] for value in values.values() if not isinstance(value, str) for flag in value]
        assert names and len(names) == len(set(names))
        assert all(name.startswith("--xla_") for name in names)


def test_what_the_user_set_stays_and_wins():
    given = {"XLA_FLAGS": "--mine=1  --xla_gpu_enable_pipelined_all_gather=false", "NCCL_DEBUG": "INFO"}
    values = xla_flags.environment("h100", given)
    flags = values["XLA_FLAGS"].split()
    assert flags[-2:] == ["--mine=1", "--xla_gpu_enable_pipelined_all_gather=false"]
    assert set(xla_flags.GPU_LATENCY_HIDING) <= set(flags)
    assert values["NCCL_DEBUG"] == "INFO" and values["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"


def test_an_unknown_bundle_is_refused():
    with pytest.raises(UserError, match=r"the bundle of flags is 'h200'.*'h100'"):
        xla_flags.environment("h200", {})


def command(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], env=variables, capture_output=True, text=True, timeout=60)


def test_a_shell_reads_the_lines_back():
    line = 'eval "$(python -m igpo_jax.parallel.xla_flags h100)" && printenv XLA_FLAGS NCCL_DEBUG'
    done = command(line, XLA_FLAGS="--mine='a b'")
    assert done.stdout.splitlines() == [
        xla_flags.environment("h100", {"XLA_FLAGS": "--mine='a b'"})["XLA_FLAGS"],
        "WARN",
    ]


def test_the_command_names_the_bundles_and_refuses_others():
    assert command("python -m igpo_jax.parallel.xla_flags").stdout.split() == list(xla_flags.BUNDLES)
    wrong = command("python -m igpo_jax.parallel.xla_flags tpus")
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith(
        "error: the bundle of flags is 'tpus'"
    )
