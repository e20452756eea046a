r"""Is a training question also a test question? Questions are compared in a normal form, as fingerprints.

``public_tests.json`` holds the fingerprints of the public test sets, so that a training set can be held against all
of them without their files. Written from their files, each given as NAME=PATH or NAME:LABEL=PATH, by
``python -m igpo_jax.data.fingerprints gsm8k=DIR math500=DIR amc23=DIR ... sudoku=FILE sudoku:spg=FILE``.
"""

import collections
import functools
import hashlib
import json
import pathlib
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping

from igpo_jax.data.settings import DataSettings

TABLE = pathlib.Path(__file__).parent / "public_tests.json"
_DIGITS = 12
#: LaTeX that changes how a formula looks and not what it says.
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|,|!|;|:|quad|qquad|ldots|dots|cdots)(?![a-z])|\\(?=[$%])")
_FRACTIONS = re.compile(r"\\[dt]frac(?![a-z])")
#: Kept are letters, digits, operators and the backslash of commands; "x+1" and "x-1" are two questions.
_IGNORED = re.compile(r"[^\w\\+\-*/=<>^|]|_")


def normal_form(question: str) -> str:
    """Returns ``question`` without case, blanks, punctuation, brackets and LaTeX layout."""
    text = unicodedata.normalize("NFKC", question).casefold().replace("−", "-").replace("\\(", "").replace("\\)", "")
    return _IGNORED.sub("", _FRACTIONS.sub(r"\\frac", _LAYOUT.sub("", text)))


def fingerprint(question: str) -> str:
    """Returns 12 hexadecimal digits that two questions share when their normal forms are equal."""
    return hashlib.sha256(normal_form(question).encode()).hexdigest()[:_DIGITS]


@functools.cache
def public_tests() -> dict[str, frozenset[str]]:
    """Returns the fingerprints of every public test set, by name."""
    table = json.loads(TABLE.read_text())
    return {name: frozenset(entry["fingerprints"].split()) for name, entry in table.items()}


@functools.cache
def _homes() -> dict[str, tuple[str, ...]]:
    homes = collections.defaultdict(list)
    for name, known in public_tests().items():
        for value in known:
            homes[value].append(name)
    return {value: tuple(names) for value, names in homes.items()}


def public_homes(question: str) -> tuple[str, ...]:
    """Returns the names of the public test sets that ask ``question``."""
    return _homes().get(fingerprint(question), ())


def overlap(questions: Iterable[str], tests: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Counts the questions that each test set asks too.

    Args:
        questions: training questions.
        tests: further test questions by name, beside the public sets.

    Returns:
        Count by test set; every public set is named, with 0 where nothing is shared.
    """
    known = {**public_tests(), **{name: frozenset(map(fingerprint, asked)) for name, asked in tests.items()}}
    found = collections.Counter[str]()
    for value in map(fingerprint, questions):
        found.update(name for name, values in known.items() if value in values)
    return {name: found[name] for name in known}


def make_table(sources: dict[str, str]) -> dict[str, dict[str, object]]:
    """Returns the table of the test splits of data sets given by name and path."""
    from igpo_jax.data.splits import open_split

    table: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, path in sources.items():  # sudoku:spg is another file of sudoku
            rows = open_split(DataSettings(name=name.split(":")[0], path=path), "test", cache)
            values = sorted({fingerprint(row.question) for row in rows})
            table[name] = {"questions": len(rows), "files": rows.report["sha256"], "fingerprints": " ".join(values)}
    return table


if __name__ == "__main__":
    made = make_table(dict(argument.split("=", 1) for argument in sys.argv[1:]))
    TABLE.write_text(json.dumps(made, indent=1) + "\n")
