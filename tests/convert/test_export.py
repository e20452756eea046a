import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import exporter, hf, importer, layout, runs, writing
from convert.source import load_model
from igpo_jax.models import llada, lora
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from tests.convert.conftest import SMALL, RunDirectory, files_of, random_params, write_tokenizer


def exported(folder, output, **settings):
    exporter.export_model(folder, output, **settings)
    return hf.load_checkpoint(output, dtype=None)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)


# --- files ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_those_that_the_library_writes(tmp_path, dtype):
    tensors = hf.params_to_hf(random_params(SMALL, dtype), SMALL)
    announced = {name: writing.Tensor(values.shape, values.dtype) for name, values in tensors.items()}
    writing.write_file(tmp_path / "ours", announced, lambda name: [tensors[name]])
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_and_index(small, tmp_path):
    _, params = exported(small, tmp_path / "cut", shard_bytes=5000)
    jax.tree.map(np.testing.assert_array_equal, params, random_params(SMALL))
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3 and sorted(set(index["weight_map"].values())) == files
    found = {name: file for file in files for name in load_file(tmp_path / "cut" / file)}
    assert index["weight_map"] == found and list(index["weight_map"]) == sorted(found)
    tensors = hf.load_safetensors(tmp_path / "cut").values()
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in tensors)
    assert all(sum(t.nbytes for t in load_file(tmp_path / "cut" / file).values()) <= 5000 for file in files)


def test_shards_of_the_real_model_are_cut_at_five_gigabytes():
    config = llada.ModelConfig()
    bfloat16 = np.dtype("bfloat16")
    tensors = {name: writing.Tensor(place.shape, bfloat16) for name, place in layout.places(config).items()}
    assert len(tensors) == 291 and sum(tensor.nbytes for tensor in tensors.values()) == 16_031_162_368
    groups = writing.split(tensors, exporter.SHARD_BYTES)
    sizes = [sum(tensors[name].nbytes for name in group) for group in groups]
    assert len(groups) == 4 and max(sizes) <= 5 * 10**9
    assert [name for group in groups for name in group] == list(tensors)
    assert list(tensors)[:2] == ["model.transformer.wte.weight", "model.transformer.ln_f.weight"]
    assert list(tensors)[-1] == "model.transformer.ff_out.weight"


def test_a_tensor_larger_than_a_shard_gets_its_own():
    sizes = {"a": 10, "b": 100, "c": 10, "d": 10}
    tensors = {name: writing.Tensor((size,), np.dtype("int8")) for name, size in sizes.items()}
    assert writing.split(tensors, 20) == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_tensor_may_come_in_blocks_of_rows(tmp_path, blocks):
    values = np.arange(35, dtype=np.float32).reshape(5, 7)
    announced = {"w": writing.Tensor(values.shape, values.dtype)}
    writing.write_file(tmp_path / "w", announced, lambda name: np.array_split(values, blocks))
    np.testing.assert_array_equal(load_file(tmp_path / "w")["w"], values)


@pytest.mark.parametrize("wrong", [np.zeros((4, 7), "f4"), np.zeros((5, 7), "f8"), np.zeros((7, 5), "f4")])
def test_a_tensor_that_is_not_as_announced(tmp_path, wrong):
    announced = {"w": writing.Tensor((5, 7), np.dtype("float32"))}
    with pytest.raises(ValueError, match="as announced"):
        writing.write_file(tmp_path / "w", announced, lambda name: [wrong])


@pytest.mark.parametrize(
    ("shape", "unit", "count"), [((10,), 10, 1), ((4096, 12288), 512, 2), ((126464, 4096), 512, 16)]
)
def test_slabs_cover_every_row_once_in_whole_units(shape, unit, count):
    found = layout.slabs(shape, unit, 2)
    assert len(found) == count and [rows.start for rows in found[1:]] == [rows.stop for rows in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, shape[0]) and all(rows.start % unit == 0 for rows in found)


def test_transposing_in_strips():
    for shape in [(1, 1), (15, 40), (16, 3), (100, 33)]:
        values = np.arange(np.prod(shape)).reshape(shape)
        assert layout.turned(values).flags.c_contiguous
        np.testing.assert_array_equal(layout.turned(values), values.T)
        assert layout.turned(values, transpose=False) is values


# --- training runs ---


def test_a_fully_trained_run(tmp_path, run):
    made = RunDirectory(tmp_path / "run")
    after_sft = made.train("sft", made.start())
    expected = made.train("igpo", after_sft, steps=(1, 2))
    assert run("export", "--source", made.folder, "--output", tmp_path / "out").code == 0
    config, params = hf.load_checkpoint(tmp_path / "out", dtype=None)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values.pop("torch_dtype") == "float32" and values == SMALL.to_hf()


def test_the_newest_stage_that_has_a_checkpoint(tmp_path):
    made = RunDirectory(tmp_path / "run")
    expected = made.train("sft", made.start())
    (made.folder / "checkpoints" / "igpo").mkdir()
    jax.tree.map(np.testing.assert_array_equal, exported(made.folder, tmp_path / "out")[1], expected)


def test_adapters_on_a_fresh_model_are_merged(tmp_path):
    made = RunDirectory(tmp_path / "run", rl_rank=3, sft=0)
    expected = made.train("igpo", made.start())
    _, params = exported(made.folder, tmp_path / "out")
    close(params, expected)
    changed = [name for name in lora.ALL_TARGETS if (params["blocks"][name]["weight"] != _start(made, name)).any()]
    assert changed == ["q_proj", "attn_out", "ff_proj", "ff_out"]


def _start(made, name):
    return np.asarray(made.start()["blocks"][name]["weight"])


def test_adapters_on_adapters(tmp_path):
    made = RunDirectory(tmp_path / "run", sft_rank=2, rl_rank=3)
    expected = made.train("igpo", made.train("sft", made.start()))
    close(exported(made.folder, tmp_path / "out")[1], expected)
    config, params, _ = load_model(made.folder)
    assert config == SMALL
    close(params, expected)
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    close(load_model(made.folder, mesh)[1], expected)


@pytest.mark.parametrize("kind", ["hf", "model"])
def test_adapters_on_a_checkpoint(tmp_path, small, kind):
    if kind == "model":
        importer.import_checkpoint(small, tmp_path / "model")
    made = RunDirectory(tmp_path / "run", str(tmp_path / ("model" if kind == "model" else "small")), rl_rank=3, sft=0)
    expected = made.train("igpo", random_params(SMALL))
    close(exported(made.folder, tmp_path / "out")[1], expected)


def test_the_checkpoint_under_the_adapters_is_gone(tmp_path, refused):
    made = RunDirectory(tmp_path / "run", str(tmp_path / "moved"), rl_rank=3, sft=0)
    made.train("igpo", random_params(SMALL))
    line = refused("export", "--source", made.folder, "--output", tmp_path / "out")
    assert f"trained adapters on {tmp_path / 'moved'}, which is needed to merge them" in line


def test_a_run_to_another_dtype(tmp_path):
    made = RunDirectory(tmp_path / "run", rl=0)
    expected = made.train("sft", made.start())
    _, params = exported(made.folder, tmp_path / "out", dtype="bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")), params, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_exported_run_comes_back(tmp_path):
    made = RunDirectory(tmp_path / "run", rl=0)
    write_tokenizer(made.folder / "tokenizer")
    expected = made.train("sft", made.start())
    exporter.export_model(made.folder, tmp_path / "out")
    vocabulary = {"tokenizer.json", "tokenizer_config.json"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {"chat_template.jinja"} == {"config.json", "model.safetensors"} | vocabulary
    for name in vocabulary:
        assert (tmp_path / "out" / name).read_bytes() == (made.folder / "tokenizer" / name).read_bytes()
    for file in vocabulary:
        (tmp_path / "out" / file).unlink()
    importer.import_checkpoint(tmp_path / "out", tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "model")[1], expected)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    made = RunDirectory(tmp_path / "run", rl=0)
    first = made.train("sft", made.start(), steps=(1,))
    made.train("sft", first, steps=(2,))
    for path in (made.folder / "checkpoints" / "sft" / "2" / "state").glob("_METADATA"):
        path.write_text("{")
    _, params = exported(made.folder, tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, first)
    assert any("sft/2/state cannot be read" in record.message for record in caplog.records)


def test_a_run_without_checkpoints(tmp_path, refused):
    made = RunDirectory(tmp_path / "run")
    line = refused("export", "--source", made.folder, "--output", tmp_path / "out")
    assert "has no finished checkpoint; let training reach its first save" in line


# --- adapters alone ---


def test_adapters_alone_in_the_layout_of_peft(tmp_path, run):
    made = RunDirectory(tmp_path / "run", "somewhere/LLaDA-8B-Instruct", rl_rank=3, sft=0)
    made.train("igpo", random_params(SMALL))
    done = run("export", "--source", made.folder, "--output", tmp_path / "out", "--adapters-only")
    assert done.code == 0 and "q_proj, attn_out, ff_proj, ff_out" in done.out
    assert set(files_of(tmp_path / "out")) == {"adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    prefix = "base_model.model.model.transformer.blocks"
    assert sorted(tensors) == sorted(
        f"{prefix}.{layer}.{name}.lora_{part}.weight"
        for layer in range(2)
        for name in ("q_proj", "attn_out", "ff_proj", "ff_out")
        for part in "AB"
    )
    adapters = runs.Run(made.folder).adapters("igpo")
    np.testing.assert_array_equal(tensors[f"{prefix}.1.ff_out.lora_A.weight"], adapters.layers["ff_out"]["a"][1].T)
    np.testing.assert_array_equal(tensors[f"{prefix}.0.attn_out.lora_B.weight"], adapters.layers["attn_out"]["b"][0].T)
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (values["peft_type"], values["r"], values["lora_alpha"]) == ("LORA", 3, 6.0)
    assert values["base_model_name_or_path"] == "somewhere/LLaDA-8B-Instruct"


def test_adapters_alone_add_up_to_the_merged_model(tmp_path):
    """W + alpha / r * B A, as PEFT computes it, from the two exports."""
    made = RunDirectory(tmp_path / "run", rl_rank=3, sft=0)
    start = hf.params_to_hf(made.start(), SMALL)
    made.train("igpo", made.start())
    exporter.export_adapters(made.folder, tmp_path / "adapters")
    exporter.export_model(made.folder, tmp_path / "merged")
    merged, parts = hf.load_safetensors(tmp_path / "merged"), load_file(tmp_path / "adapters/adapter_model.safetensors")
    values = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    scale = values["lora_alpha"] / values["r"]
    for name, weight in start.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in parts:
            weight = weight + scale * parts[f"{stem}.lora_B.weight"] @ parts[f"{stem}.lora_A.weight"]
        np.testing.assert_allclose(merged[name], weight, rtol=0, atol=1e-6)


def test_the_selector_of_the_adapters_matches_exactly_the_adapted_modules(tmp_path):
    """PEFT compares a text with whole module paths; the head is called ff_out too and must not be meant."""
    made = RunDirectory(tmp_path / "run", rl_rank=3, sft=0)
    made.train("igpo", made.start())
    exporter.export_adapters(made.folder, tmp_path / "out")
    selector = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    modules = {name.rpartition(".")[0] for name in layout.places(SMALL)}
    adapted = {name.split(".lora_")[0] for name in load_file(tmp_path / "out" / "adapter_model.safetensors")}
    assert {f"base_model.model.{name}" for name in modules if re.fullmatch(selector, name)} == adapted


def test_adapters_of_what_has_none(tmp_path, small, refused):
    made = RunDirectory(tmp_path / "run", rl=0)
    made.train("sft", made.start())
    arguments = ("--output", tmp_path / "out", "--adapters-only")
    assert "stage 'sft' of" in refused("export", "--source", made.folder, *arguments)
    assert "is not a run directory of igpo_jax.train" in refused("export", "--source", small, *arguments)
    line = refused("export", "--source", made.folder, *arguments, "--dtype", "float32")
    assert "--dtype cannot be given with --adapters-only" in line
