"""The command: where pages go, what it says, and its errors of one sentence."""

import pytest

from igpo_jax import report
from tests.reporting import cases


@pytest.fixture()
def folder(tmp_path):
    folder = cases.make_run(tmp_path / "run")
    cases.save_rollouts(folder, [cases.row(group=n // 4) for n in range(8)])
    return folder


def test_one_run_has_its_page_in_its_folder(folder, capsys):
    assert report.main([str(folder)]) == 0
    page = folder / "report.html"
    assert capsys.readouterr() == (f"{page}, {round(page.stat().st_size / 1000)} kB\n", "")
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>") and "<title>run · igpo_jax report</title>" in text
    assert "left out" not in text.split("<script")[0]


def test_several_runs_have_theirs_in_the_current_folder(folder, tmp_path, monkeypatch, capsys):
    other = cases.make_run(tmp_path / "grpo", name="grpo")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert report.main([str(folder), str(other)]) == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["report.html"]
    assert "Settings that differ" in (tmp_path / "here" / "report.html").read_text()


def test_another_place_and_a_bound(folder, tmp_path, capsys):
    output = tmp_path / "page.html"
    assert report.main([str(folder), "--output", str(output), "--rollouts", "5"]) == 0
    assert "4 of 8 saved rollouts are in this page" in output.read_text() and "--rollouts=8" in output.read_text()
    assert report.main([str(folder), f"--output={output}", "--rollouts=0"]) == 0
    assert "8 saved rollouts are left out by --rollouts" in output.read_text()


def test_what_is_left_out_is_said_on_stderr_and_in_the_page(folder, capsys):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert report.main([str(folder)]) == 0
    sentence = f"{path} line 11 is not a whole row and is left out (it was cut while it was written)"
    assert capsys.readouterr().err == f"warning: {sentence}\n" and sentence in (folder / "report.html").read_text()


def test_a_run_without_rollouts_or_evaluations_has_a_page(tmp_path, capsys):
    folder = cases.make_run(tmp_path / "run")
    for path in (folder / "evaluations").iterdir():
        path.unlink()
    assert report.main([str(folder)]) == 0
    assert "No rollouts were saved" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the following arguments are required: RUN"),
        (("none",), "none does not exist"),
        (("run", "--output=none/page.html"), "--output none/page.html lies in a folder that does not exist"),
        (("run", "--output=run"), "--output run is a folder"),
        (("run", "--rollouts=-1"), "--rollouts is -1"),
        (("run", "--rollouts=many"), "invalid int value: 'many'"),
        (("run", "--ouput=x.html"), "did you mean '--output'?"),
        (("run", "run"), "named twice"),
    ],
)
def test_bad_input_is_one_sentence(folder, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(folder.parent)
    assert report.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_a_folder_that_may_not_be_written(folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert report.main([str(folder)]) == 2
    page = folder / "report.html"
    sentence = f"error: {page} cannot be written (Permission denied); name another place with --output=FILE\n"
    assert capsys.readouterr().err == sentence


def test_names_from_the_folder_cannot_become_markup(tmp_path, capsys):
    folder = cases.make_run(tmp_path / "<img src=x>")
    assert report.main([str(folder)]) == 0
    assert "<img" not in (folder / "report.html").read_text()
