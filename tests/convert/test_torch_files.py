"""`.bin` files: through a stand-in for PyTorch that behaves like it where the converter touches it, and without it."""

import importlib
import json
import pickle
import types

import ml_dtypes
import numpy as np
import pytest

from convert import hf, importer
from convert.source import load_model
from tests.convert.conftest import SMALL, random_params, same_arrays


class FakeTensor:
    """As much of torch.Tensor as is used; numpy() knows no bfloat16, like the real one."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, values.shape
        self.dtype = f"torch.{values.dtype}"

    def __getitem__(self, rows):
        return FakeTensor(self.values[rows])

    def contiguous(self):
        return self

    def view(self, dtype):
        return FakeTensor(self.values.view(dtype))

    def numpy(self):
        if self.values.dtype == ml_dtypes.bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


def fake_load(path, *, map_location, weights_only, mmap):
    assert weights_only is True and mmap is True and map_location == "cpu"
    with open(path, "rb") as file:
        stored = pickle.load(file)
    return {name: FakeTensor(values) for name, values in stored.items()} if isinstance(stored, dict) else stored


def without_torch(name, *arguments):
    if name == "torch":
        raise ImportError("No module named 'torch'")
    return real_import(name, *arguments)


real_import = importlib.import_module


@pytest.fixture
def torch(monkeypatch):
    module = types.SimpleNamespace(load=fake_load, int16=np.int16)
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *more: module if name == "torch" else real_import(name, *more)
    )
    return module


@pytest.fixture(params=["float32", "bfloat16"])
def pickled(request, tmp_path):
    """A checkpoint in two pickles with an index."""
    tensors = hf.params_to_hf(random_params(SMALL, request.param), SMALL)
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL.to_hf()))
    files = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    for number, (name, values) in enumerate(tensors.items()):
        files[list(files)[number % 2]][name] = values
    for file, part in files.items():
        (folder / file).write_bytes(pickle.dumps(part))
    weight_map = {name: file for file, part in files.items() for name in part}
    total = sum(values.nbytes for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder, request.param


def test_pickles_give_the_same_parameters(torch, pickled, tmp_path, run):
    folder, dtype = pickled
    done = run("import", "--source", folder, "--output", tmp_path / "model")
    assert done.code == 0
    same_arrays(load_model(tmp_path / "model", dtype=None)[1], random_params(SMALL, dtype))
    names = [entry["name"] for entry in json.loads((tmp_path / "model" / "manifest.json").read_text())["files"]]
    assert names[:3] == [*sorted(path.name for path in folder.glob("*.bin")), "pytorch_model.bin.index.json"]
    assert run("verify", "--source", folder, "--converted", tmp_path / "model").code == 0


def test_one_pickle(torch, tmp_path, small):
    tensors = hf.load_safetensors(small)
    (small / "model.safetensors").unlink()
    (small / "pytorch_model.bin").write_bytes(pickle.dumps(tensors))
    importer.import_checkpoint(small, tmp_path / "model")
    same_arrays(load_model(tmp_path / "model")[1], random_params(SMALL))


def test_without_the_extra(monkeypatch, pickled, refused, tmp_path):
    monkeypatch.setattr(importlib, "import_module", without_torch)
    line = refused("import", "--source", pickled[0], "--output", tmp_path / "model")
    assert (
        "is a PyTorch pickle, and PyTorch is not installed; install the extra (pip install 'igpo-jax[torch]')" in line
    )


def test_safetensors_need_no_extra_though_pickles_lie_beside_them(monkeypatch, small, tmp_path, run):
    monkeypatch.setattr(importlib, "import_module", without_torch)
    (small / "pytorch_model.bin").write_bytes(b"never opened")
    assert run("import", "--source", small, "--output", tmp_path / "model").code == 0


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (pickle.UnpicklingError("Weights only load failed"), "is damaged or holds more than tensors, perhaps code"),
        (RuntimeError("failed finding central directory\nmore"), "is not a whole file of PyTorch weights (failed find"),
        (EOFError(), "is not a whole file of PyTorch weights"),
    ],
)
def test_a_damaged_or_dangerous_pickle(torch, pickled, refused, tmp_path, error, sentence):
    def fail(*arguments, **settings):
        raise error

    torch.load = fail
    line = refused("import", "--source", pickled[0], "--output", tmp_path / "model")
    assert "00001-of-00002.bin" in line and sentence in line


@pytest.mark.parametrize("content", [["no", "names"], {"weights": np.zeros(3, np.int64)}])
def test_a_pickle_of_something_else(torch, pickled, refused, tmp_path, content):
    (pickled[0] / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(content))
    line = refused("import", "--source", pickled[0], "--output", tmp_path / "model")
    assert "holds no mapping from names to tensors" in line or "has dtype int64" in line
