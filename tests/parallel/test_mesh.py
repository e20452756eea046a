import types

import jax
import pytest
from jax.sharding import AxisType

from igpo_jax.errors import UserError
from igpo_jax.parallel import mesh as mesh_lib
from igpo_jax.parallel.mesh import MeshSettings, cpu_device_count, make_mesh, usable_cores


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (MeshSettings(), (8, 1, 1)),
        (MeshSettings(data=1, fsdp=-1), (1, 8, 1)),
        (MeshSettings(2, 2, 2), (2, 2, 2)),
        (MeshSettings(tensor=2), (4, 1, 2)),
    ],
)
def test_mesh_shapes_and_explicit_axes(settings, shape):
    mesh = make_mesh(settings)
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == mesh_lib.AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


def test_mesh_on_some_devices():
    mesh = make_mesh(MeshSettings(fsdp=2), jax.devices()[:4])
    assert tuple(mesh.shape.values()) == (2, 2, 1)


@pytest.mark.parametrize("settings", [MeshSettings(fsdp=3), MeshSettings(2, 2, 1), MeshSettings(16, 1, 1)])
def test_mesh_that_does_not_fit_names_both_numbers(settings):
    with pytest.raises(UserError, match=r"8, virtual ones of the CPU \(cpu_devices sets how many a process has\); "):
        make_mesh(settings)


def test_devices_that_are_not_here_are_no_parts_of_a_cpu():
    with pytest.raises(UserError, match=r"found 8; set .* whose product is the device count$"):
        mesh_lib.mesh_shape(MeshSettings(fsdp=3), 8)


def devices_of(platform, slices, hosts, local):
    """Stand-ins with what decides an order: hosts (processes) of each slice, devices of each host in two rows."""
    found = []
    for number in range(slices * hosts * local):
        process, here = divmod(number, local)
        index, host = divmod(process, hosts)
        coords = (2 * host + here % 2, here // 2, 0)
        device = {"id": number, "process_index": process, "slice_index": index, "coords": coords, "core_on_chip": 0}
        found.append(types.SimpleNamespace(platform=platform, device_kind=f"a {platform}", **device))
    return found


def test_hosts_of_gpus_are_slices_to_jax_and_one_mesh_to_us():
    """jax numbers the hosts of a GPU cluster as slices, and its own make_mesh refuses more than one."""
    shuffled = sorted(devices_of("gpu", 4, 1, 8), key=lambda device: device.id % 3)
    grid = mesh_lib.arranged((1, 32, 1), shuffled)
    assert grid.shape == (1, 32, 1) and [device.id for device in grid.flat] == list(range(32))


def test_tpu_slices_are_a_data_axis_of_single_slices():
    grid = mesh_lib.arranged((4, 4, 1), devices_of("tpu", 2, 2, 4))
    assert grid.shape == (4, 4, 1)
    assert [{device.slice_index for device in row.flat} for row in grid] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match=r"mesh\.data is 1, which does not divide over the 2 slices.*multiple of 2"):
        mesh_lib.arranged((1, 16, 1), devices_of("tpu", 2, 2, 4))


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 1), (1, 8, 2), (2, 2, 4)])
def test_any_shape_of_a_slice_keeps_a_tensor_group_in_one_process(shape):
    """Four hosts of 2 x 2 chips in a row: axes may share a side of the torus, groups of four are a host's."""
    grid = mesh_lib.arranged(shape, devices_of("tpu", 1, 4, 4))
    assert grid.shape == shape and len({device.id for device in grid.flat}) == 16
    for group in grid.reshape(-1, shape[-1]):
        assert len({device.process_index for device in group}) == 1


@pytest.mark.parametrize("sizes", [{"data": 0}, {"fsdp": -2}, {"data": -1, "fsdp": -1}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r"mesh"):
        MeshSettings(**sizes)


@pytest.mark.parametrize(
    ("batches", "cores", "count"),
    [([64, 32], 4, 4), ([64, 6], 4, 2), ([7], 4, 1), ([6], 4, 3), ([48, 64], 20, 16), ([], 4, 1), ([8], 1, 1)],
)
def test_cpu_device_count_divides_every_batch(batches, cores, count):
    assert cpu_device_count(batches, cores) == count


def test_usable_cores_honours_either_kind_of_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_lib, "_CGROUP", tmp_path)
    monkeypatch.setattr(mesh_lib.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cores() == 16
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("600000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == 6
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 16
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores() == 1


def test_cpu_devices_cannot_change_after_the_start():
    jax.devices()
    mesh_lib.force_cpu_devices(8)
    with pytest.raises(UserError, match=r"already runs with 8"):
        mesh_lib.force_cpu_devices(3)


def test_platform_of_a_mesh():
    assert mesh_lib.mesh_platform(make_mesh()) == "cpu"
