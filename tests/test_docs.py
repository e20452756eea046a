"""What the pages name exists: fields, functions, links, commands, defaults; and their programs print what they show."""

import ast
import contextlib
import functools
import io
import pathlib
import re
import shlex
import string

import pytest

from igpo_jax import cli, settings, train
from igpo_jax.training.run_settings import RunSettings

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [ROOT / "docs" / name for name in ("how_a_step_works.md", "knobs.md", "paper_map.md")]
DEFAULTS = settings.to_config_dict(RunSettings())
FIELDS = settings.field_paths(DEFAULTS)
SECTIONS = {path.rpartition(".")[0] for path in FIELDS} | {path.split(".")[0] for path in FIELDS if "." in path}

REFERENCE = re.compile(r"([\w/]+\.py)::([A-Za-z_]\w*(?:\.\w+)*)")
OVERRIDE = re.compile(r"--(?:no)?config\.([a-z]\w*(?:\.\w+)*)")
SPAN = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def mistakes_shown(text: str) -> str:
    """``text`` without the mistakes that a page shows on purpose: a command whose next line is its error."""
    return re.sub(r"^.*\nerror: .*$", "", text, flags=re.MULTILINE)


@by_page
def test_every_override_is_a_field(page):
    named = OVERRIDE.findall(mistakes_shown(page.read_text()))
    assert not [path for path in named if path not in FIELDS]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_field_in_the_text_exists(page):
    named = [name for name in SPAN.findall(page.read_text()) if name.split(".")[0] in SECTIONS]
    named = [name for name in named if not name.endswith((".py", ".md", ".json", ".jsonl"))]
    assert named and not [name for name in named if name not in FIELDS and name not in SECTIONS]


@functools.cache
def names_of(path: pathlib.Path) -> frozenset[str]:
    """Everything that a file defines at its top level, and what its classes hold, as ``Class.member``."""
    return frozenset(defined(ast.parse(path.read_text()).body))


def defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names |= defined(node.body, f"{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            names |= {prefix + leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name)} if target else set()
    return names


def unresolved(text: str) -> list[str]:
    """The ``file.py::name`` references of ``text`` that lead nowhere; files count from the root or from igpo_jax/."""
    missing = []
    for file, name in REFERENCE.findall(text):
        paths = [path for path in (ROOT / file, ROOT / "igpo_jax" / file) if path.is_file()]
        if not paths or name not in names_of(paths[0]):
            missing.append(f"{file}::{name}")
    return missing


@by_page
def test_every_reference_to_code_resolves(page):
    assert not unresolved(page.read_text())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `rl/hints.py::place_hints`.", []),
        ("`igpo_jax/rl/objectives.py::Objective.official`", []),
        ("`training/rl.py::RlSettings.inner_updates`", []),
        ("`rl/objectives.py::RATIOS`", []),
        ("`rl/hints.py::value_visible`", ["rl/hints.py::value_visible"]),  # imported there, defined elsewhere
        ("`rl/hint.py::place_hints`", ["rl/hint.py::place_hints"]),
        ("`rl/objectives.py::Objective.no_such`", ["rl/objectives.py::Objective.no_such"]),
    ],
)
def test_a_wrong_reference_is_found(text, found):
    assert unresolved(text) == found


def markdown_files() -> list[pathlib.Path]:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "runs"]
    return [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: pathlib.Path, text: str) -> list[str]:
    dead = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file
        if not target.exists() or (anchor and anchor not in slugs(target.read_text() if file else text)):
            dead.append(link)
    return dead


def test_every_relative_link_leads_somewhere():
    pages = markdown_files()
    assert set(PAGES) <= set(pages)
    dead = {str(page.relative_to(ROOT)): dead_links(page, page.read_text()) for page in pages}
    assert not {page: links for page, links in dead.items() if links}


@by_page
def test_no_page_has_a_place_left_to_fill_in(page):
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$|@@", page.read_text(), re.MULTILINE)


def test_a_dead_link_is_found():
    text = "# One page\n[a](docs/none.md) [b](README.md#no-such-heading) [c](#one-page) [d](https://example.org/x)"
    assert dead_links(ROOT / "README.md", text) == ["docs/none.md", "README.md#no-such-heading"]


def commands() -> list[tuple[str, list[str]]]:
    """(page, argv) of every training command in a bash block; quickstart.sh adds what it adds when it runs."""
    found = []
    for page in PAGES:
        blocks = [body for language, body in FENCE.findall(page.read_text()) if language == "bash"]
        variables: dict[str, str] = {}
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(string.Template(line).safe_substitute(variables), comments=True)
            if len(words) == 1 and (set_ := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
                variables[set_[1]] = set_[2]
            if words[:2] == ["bash", "launch/quickstart.sh"]:
                given = {word.split("=")[0] for word in words[2:]}
                usual = {"--config": "configs/quickstart.py", "--workdir": "runs/quickstart"}
                added = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
                found.append((page.name, ["train", *added, *words[2:]]))
            elif words[:3] == ["python", "-m", "igpo_jax.train"]:
                found.append((page.name, ["train", *words[3:]]))
    return found


@pytest.mark.parametrize(("page", "argv"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_is_accepted(page, argv, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    built = []

    def main(command: cli.Command) -> None:
        built.append(settings.from_config_dict(RunSettings, command.config))

    with pytest.raises(SystemExit) as stop:
        cli.run(main, argv, define=train.define)
    assert stop.value.code == 0, capsys.readouterr().err
    assert len(built) == 1


def test_the_defaults_on_the_page_are_the_codes():
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", (ROOT / "docs" / "knobs.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    wrong = {path: value for path, value in rows if ast.literal_eval(value) != value_at(path)}
    assert not wrong


def value_at(path: str) -> object:
    value = DEFAULTS
    for name in path.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("section", ["rl.hints", "rl.objective", "rl.rollout", "rl.rewards"])
def test_every_field_of_the_algorithm_has_its_knob(section):
    text = (ROOT / "docs" / "knobs.md").read_text()
    assert not [path for path in FIELDS if path.startswith(f"{section}.") and f"| `{path}` |" not in text]


def test_every_line_of_the_algorithm_is_mapped():
    lines = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "paper_map.md").read_text(), re.MULTILINE)
    assert [int(line) for line in lines] == list(range(1, 18))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_programs_print_what_the_page_shows(page):
    blocks = FENCE.findall(page.read_text())
    for (language, body), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(body, {})
            assert following == ("text", printed.getvalue())
