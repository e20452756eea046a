"""What accelerators can do, by the name that jax gives them: the peaks behind MFU and every roofline estimate.

Sources: Google Cloud's TPU pages (v4, v5e, v5p, v6e: peak bf16, HBM, inter-chip links), the "How to Scale Your Model"
book of the JAX authors (one-way bandwidth of a link), NVIDIA's data sheets of A100, H100 SXM and H200 (dense bf16, no
sparsity) and of the DGX systems built from them (NVLink in one direction, one 200 or 400 Gb/s adapter for each GPU).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip (TPU) or one GPU; rates per second, in one direction."""

    name: str
    peak_bf16_flops: float  #: dense bf16 products with float32 sums
    hbm_gib: float  #: memory that programs can use: what the compiler grants on TPUs, the whole of it on GPUs
    hbm_bytes_per_second: float  #: to and from that memory
    link_bytes_per_second: float  #: one direction of one link: an ICI link on TPUs, all NVLinks together on GPUs
    link_axes: int  #: axes of the torus that the links span; 1 where a switch connects everything
    network_bytes_per_second: float  #: of each device to other slices (TPU) or other hosts (GPU)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("v4", 275e12, 30.75, 1.2e12, 4.5e10, 3, 3.1e9),
        Device("v5e", 197e12, 15.75, 8.2e11, 4.5e10, 2, 3.1e9),
        Device("v5p", 459e12, 95.74, 2.77e12, 9e10, 3, 6.25e9),
        Device("v6e", 918e12, 31.25, 1.64e12, 9e10, 2, 6.25e9),
        Device("a100", 312e12, 79.1, 2.04e12, 3e11, 1, 2.5e10),
        Device("h100", 989e12, 79.1, 3.35e12, 4.5e11, 1, 5e10),
        Device("h200", 989e12, 139.8, 4.8e12, 4.5e11, 1, 5e10),
    )
}

#: Start of jax's ``device_kind``, in lower case -> name above; the longer of two that fit decides.
_KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "nvidia a100-sxm4-80gb": "a100",
    "nvidia h100 80gb hbm3": "h100",
    "nvidia h200": "h200",
}


def device_of(jax_device_kind: str) -> Device | None:
    """The entry for ``jax.Device.device_kind``, None for a device that is not in the table ("unknown device").

    Variants with other peaks (TPU v4 lite, H100 PCIe, A100 with 40 GB) are unknown rather than wrong.
    """
    kind = jax_device_kind.strip().lower()
    if kind.startswith("tpu v4 lite"):
        return None
    fitting = [start for start in _KINDS if kind.startswith(start)]
    return DEVICES[_KINDS[max(fitting, key=len)]] if fitting else None
