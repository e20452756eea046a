import jax
import pytest

from igpo_jax.parallel.devices import DEVICES, device_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_jax_names_lead_to_the_entry(kind, name):
    assert device_of(kind) is DEVICES[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "Radeon", ""])
def test_devices_with_other_peaks_are_unknown(kind):
    assert device_of(kind) is None


def test_this_machine_is_unknown():
    assert device_of(jax.devices("cpu")[0].device_kind) is None


def test_the_table_is_plausible():
    for name, device in DEVICES.items():
        assert device.name == name
        # FLOPs a byte of HBM: every accelerator needs hundreds, and links are far slower than memory.
        assert 100 < device.peak_bf16_flops / device.hbm_bytes_per_second < 600
        assert device.network_bytes_per_second < device.link_bytes_per_second < device.hbm_bytes_per_second
