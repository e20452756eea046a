"""Compiler and runtime flags for TPU slices and H100 nodes, each with its reason; the launch scripts read them here.

Usage:
  python -m igpo_jax.parallel.xla_flags              # the names of the bundles
  python -m igpo_jax.parallel.xla_flags h100         # shell lines that set them
  eval "$(python -m igpo_jax.parallel.xla_flags h100)" && python -m igpo_jax.train ...

XLA and libtpu end the process at a flag that they do not know, so the tests compile with every flag here. What the user
has set already stays, and stands last, where it wins.

Sources: Google's MaxText (its flag library), NVIDIA's page on the performance of LLMs with JAX and XLA. None of them
changes results beyond rounding. What they gain was not measured here on an accelerator.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from igpo_jax.errors import UserError, check_choice

#: Collectives start early and end late, so that products run in between. libtpu's default today; said for older ones.
TPU_LATENCY_HIDING = ("--xla_tpu_enable_latency_hiding_scheduler=true",)

#: FSDP gathers each layer's weights just before its products: gathers run beside the products of the layer before.
TPU_ASYNC_COLLECTIVES = (
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
)

#: On v5e they may also be fused with those products and stretch over several of them. For other chips libtpu 0.0.52
#: refuses to compile with them, because results may be wrong; 0.0.42 compiled without a word.
V5E_COLLECTIVE_FUSION = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
)

#: Collective matmul, for a mesh with a tensor axis: a product whose operand lies on several chips is cut into pieces,
#: and each piece travels while the piece before is multiplied. 0 MiB: whatever the operand's size.
TPU_COLLECTIVE_MATMUL = (
    "--xla_jf_spmd_threshold_for_windowed_einsum_mib=0",
    "--xla_tpu_decompose_all_gather_einsum=true",
    "--xla_tpu_decompose_einsum_reduce_scatter=true",
)

#: Several slices: the gradient sums between slices (over the data centre's network) run beside the backward pass.
TPU_MULTISLICE = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)

#: As on TPUs, but off by default. Collectives get a stream that goes before others, so that none waits for a product.
GPU_LATENCY_HIDING = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_highest_priority_async_stream=true",
)

#: FSDP moves each of a layer's weights in a collective of its own, too small for the network: they are put together, up
#: to 128 MiB at a time, whatever dimension is split.
GPU_COMBINED_COLLECTIVES = (
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
    "--xla_gpu_enable_all_gather_combine_by_dim=false",
    "--xla_gpu_enable_reduce_scatter_combine_by_dim=false",
)

#: Layers are scanned: the gather of the next layer's weights and the sum of the last one's gradients run in this turn
#: of the loop, and the loop is unrolled once, so that buffers need not be copied between turns. Costs the memory of one
#: more layer's gathered weights.
GPU_PIPELINED_COLLECTIVES = (
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_while_loop_double_buffering=true",
)

#: As on TPUs, for a mesh with a tensor axis; the pieces run on streams of their own.
GPU_COLLECTIVE_MATMUL = (
    "--xla_gpu_threshold_for_windowed_einsum_mib=0",
    "--xla_gpu_multi_streamed_windowed_einsum=true",
)

#: A process whose peer is lost ends with a message within ten minutes, rather than wait in a collective for ever.
GPU_LOST_PEERS = (
    "--xla_gpu_nccl_terminate_on_error=true",
    "--xla_gpu_nccl_termination_timeout_seconds=600",
)

#: JAX takes 75% of the memory by default; NCCL, cuDNN and the driver need a few GiB of an H100's 80.
GPU_MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}

#: NCCL is silent by default; its warnings say which link or adapter failed.
NCCL = {"NCCL_DEBUG": "WARN"}

_TPU = TPU_LATENCY_HIDING + TPU_ASYNC_COLLECTIVES
_V5E = _TPU + V5E_COLLECTIVE_FUSION
_GPU = GPU_LATENCY_HIDING + GPU_COMBINED_COLLECTIVES + GPU_PIPELINED_COLLECTIVES + GPU_LOST_PEERS

#: Bundle -> environment variable -> its flags, or its value where it holds no flags.
BUNDLES: dict[str, dict[str, tuple[str, ...] | str]] = {
    "tpu": {"LIBTPU_INIT_ARGS": _TPU},
    "tpu_multislice": {"LIBTPU_INIT_ARGS": _TPU + TPU_MULTISLICE},
    "tpu_tensor": {"LIBTPU_INIT_ARGS": _TPU + TPU_COLLECTIVE_MATMUL},
    "v5e": {"LIBTPU_INIT_ARGS": _V5E},
    "v5e_multislice": {"LIBTPU_INIT_ARGS": _V5E + TPU_MULTISLICE},
    "v5e_tensor": {"LIBTPU_INIT_ARGS": _V5E + TPU_COLLECTIVE_MATMUL},
    "h100": {"XLA_FLAGS": _GPU, **GPU_MEMORY, **NCCL},
    "h100_tensor": {"XLA_FLAGS": _GPU + GPU_COLLECTIVE_MATMUL, **GPU_MEMORY, **NCCL},
}


def environment(bundle: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of a bundle.

    Args:
      bundle: a key of ``BUNDLES``.
      given: the environment so far, by default this process's; its flags follow the bundle's, its values stay.

    Raises:
      UserError: there is no such bundle.
    """
    check_choice("the bundle of flags", bundle, BUNDLES)
    given = os.environ if given is None else given
    values = {}
    for name, value in BUNDLES[bundle].items():
        before = given.get(name, "")
        values[name] = before or value if isinstance(value, str) else " ".join([*value, *before.split()])
    return values


def main(argv: Sequence[str]) -> int:
    """Prints the names of the bundles, or the shell lines of one; 2 where it does not exist."""
    if len(argv) != 2:
        print("\n".join(BUNDLES))
        return 0 if len(argv) == 1 else 2
    try:
        values = environment(argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
