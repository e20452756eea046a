import fnmatch
import json

import huggingface_hub
import pytest

from convert import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def downloads(monkeypatch, small):
    """Stands for the hub: answers with the small checkpoint and notes what it was asked."""
    asked = []

    def download(name, **settings):
        asked.append((name, settings))
        return str(small)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_known_model_is_pinned(downloads, run, tmp_path):
    done = run("import", "--source", "GSAI-ML/LLaDA-8B-Instruct", "--output", tmp_path / "model")
    assert done.code == 0
    ((name, settings),) = downloads
    assert name == "GSAI-ML/LLaDA-8B-Instruct"
    assert settings["revision"] == "08b83a6feb34df1a6011b80c3c00c7563e963b07"
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["source"] == {"hub": name, "revision": settings["revision"]}
    assert f"hub {name} revision {settings['revision']}" in run("inspect", tmp_path / "model").out


def test_the_revision_of_the_command_line(downloads, run, tmp_path):
    for name in ("GSAI-ML/LLaDA-8B-Instruct", "someone/a.fine_tune-1"):
        output = tmp_path / name.replace("/", "_")
        assert run("import", "--source", name, "--output", output, "--revision", COMMIT).code == 0
    assert [settings["revision"] for _, settings in downloads] == [COMMIT, COMMIT]


def test_no_code_and_no_pickle_is_fetched(downloads, run, tmp_path):
    run("import", "--source", "someone/model", "--output", tmp_path / "model", "--revision", COMMIT)
    patterns = downloads[0][1]["allow_patterns"]

    def fetched(file: str) -> bool:
        return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

    for file in ("modeling_llada.py", "configuration_llada.py", "pytorch_model.bin", "README.md", "training_args.bin"):
        assert not fetched(file)
    weights = ("model.safetensors", "model-00001-of-00006.safetensors", "model.safetensors.index.json")
    for file in (*weights, "config.json", "generation_config.json", "tokenizer.json", "special_tokens_map.json"):
        assert fetched(file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "someone/model"], "needs an exact revision; pass --revision with the 40 digits"),
        (["--source", "someone/model", "--revision", "main"], "a branch or a tag may move"),
        (["--source", "someone/model", "--revision", COMMIT[:12]], "expected the 40 hex digits of a commit"),
        (["--source", "one/two/three"], "config.json does not exist"),
        (["--source", "../elsewhere"], "config.json does not exist"),
    ],
)
def test_what_is_refused(downloads, refused, tmp_path, arguments, sentence):
    assert sentence in refused("import", *arguments, "--output", tmp_path / "model")
    assert downloads == []


def test_a_revision_of_a_folder(downloads, refused, small, tmp_path):
    line = refused("import", "--source", small, "--output", tmp_path / "model", "--revision", COMMIT)
    assert "--revision is for a hub id" in line and downloads == []


def test_a_folder_is_preferred_to_a_hub_id(tmp_path, monkeypatch, small, downloads, run):
    monkeypatch.chdir(small.parent)
    (small.parent / "someone").mkdir()
    small.rename(small.parent / "someone" / "model")
    assert not hub.is_hub_id("someone/model")
    assert run("import", "--source", "someone/model", "--output", "out").code == 0 and downloads == []


def test_a_failed_download_is_one_sentence(monkeypatch, refused, tmp_path):
    def fail(name, **settings):
        raise ConnectionError("no route to host\nand much more\n")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    line = refused("import", "--source", "GSAI-ML/LLaDA-8B-Base", "--output", tmp_path / "model")
    assert line.startswith("GSAI-ML/LLaDA-8B-Base at 0f2787f2d87eac5eed8a087d5ecd24277e6255b2 cannot be downloaded (no")


def test_offline_without_the_files(refused, tmp_path):
    """The tests run with HF_HUB_OFFLINE set, so the library itself refuses."""
    line = refused("import", "--source", "GSAI-ML/LLaDA-8B-Base", "--output", tmp_path / "model")
    assert "cannot be downloaded" in line and "pass its folder as --source" in line
