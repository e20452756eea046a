"""Rows out of files: JSON lines, a JSON list, CSV and Parquet, each row with the place where it stands."""

import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from igpo_jax.errors import UserError

#: (place, object); a place reads ``FILE line N`` or ``FILE row N``.
Row = tuple[str, dict[str, Any]]

#: Endings that `read_rows` knows.
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file as 64 hexadecimal digits."""
    with pathlib.Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_file(path: pathlib.Path, hint: str) -> pathlib.Path:
    """Returns ``path``; raises `UserError` with ``hint`` as the next thing to try where it is not a file."""
    if not path.is_file():
        raise UserError(f"the data file {path} does not exist; {hint}")
    return path


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a file in their order; its ending says how it is read, ``.jsonl`` where it has none.

    Raises:
        UserError: the file is not UTF-8 or not what its ending says, a row is no object, or there is no row at all.
    """
    readers = {".json": _read_json_list, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers.get(path.suffix.lower(), _read_json_lines)(path)


def read_json_lines(path: pathlib.Path) -> list[Row]:
    """Returns (place, object) for every line of ``path`` that is not blank; a place reads ``FILE line N``.

    Raises:
        UserError: the file is not UTF-8, a line is not a JSON object, or there is no line at all.
    """
    return list(_read_json_lines(path))


def _read_json_lines(path: pathlib.Path) -> Iterator[Row]:
    # Not splitlines(): JSON text may hold U+2028 and the like, which would cut a row in two.
    lines = [(f"{path} line {number}", line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no rows; expected one JSON object per line")
    for place, line in lines:
        try:
            row = _json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON ({error}); expected one object per line") from None
        yield place, _object(row, place)


def _read_json_list(path: pathlib.Path) -> Iterator[Row]:
    try:
        rows = _json(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}); expected a list of objects (JSON lines end in .jsonl)"
        ) from None
    if isinstance(rows, dict) and rows:
        rows = [rows]  # one row in a file of its own, as in MATH's original folders
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} holds {'no rows' if rows == [] else 'no list'}; expected a JSON list of objects")
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", _object(row, f"{path} row {number}")


def _json(text: str) -> Any:
    value = json.loads(text)
    if "\\ud" in text.lower():
        # Half a character is allowed in JSON, but no file, hash or tokenizer takes it.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(r"an escape \ud... in it is half a character") from None
    return value


def _read_csv(path: pathlib.Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    count = 0
    for row in reader:
        count += 1
        if None in row or None in row.values():
            raise UserError(f"{path} line {reader.line_num} has another number of columns than the first line")
        yield f"{path} line {reader.line_num}", dict(row)
    if not count:
        raise UserError(f"{path} holds no rows; expected a line of column names and one line for each row")


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            count = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    count += 1
                    yield f"{path} row {count}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); copy or download it again") from None
    if not count:
        raise UserError(f"{path} holds no rows; expected a Parquet file with at least one")


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f'{place} holds a {type(row).__name__}, expected an object like {{"question": ..., ...}}')
    return row
