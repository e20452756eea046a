import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


def test_the_programs_on_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for program in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(program, names)
    assert names["batch"].shape == (32, 64)
    assert names["encoded"].report["dropped"] == {}
