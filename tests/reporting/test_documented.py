"""The page on reading a run: its commands are accepted, its pictures are there, its filters are those of the page."""

import pathlib
import re
import shlex

import pytest

from igpo_jax import report
from igpo_jax.reporting import page, samples

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (ROOT / "docs" / "reading_a_run.md").read_text()


def commands():
    """(page, arguments) of every command in a bash block."""
    found = []
    for path in PAGES:
        blocks = re.findall(r"^```bash\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "igpo_jax.report"]:
                found.append((path.name, words[3:]))
    return found


@pytest.mark.parametrize(("name", "arguments"), commands())
def test_every_command_is_accepted(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report._check(report._parser().read(arguments))


def test_there_are_commands_to_look_at():
    assert {name for name, _ in commands()} >= {"reading_a_run.md", "README.md"}


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]+\]\((images/[\w.]+)\)", TEXT)
    assert len(pictures) >= 4
    for name in pictures:
        data = (ROOT / "docs" / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 200_000, name


def test_every_filter_is_on_the_page():
    script = page._static("rollouts.js")
    names = dict(re.findall(r"(\w+): \"([\w -]+)\"", script.partition("const NAMES")[2].partition("}")[0]))
    assert names.keys() == set(samples.FLAGS)
    rows = " ".join(re.findall(r"^\| ([\w ,-]+) \|", TEXT, re.MULTILINE))
    assert [name for name in names.values() if name not in rows] == []


def test_the_default_bound_is_on_the_page():
    assert f"at most {report.ROLLOUTS:,} completions" in TEXT
