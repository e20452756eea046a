"""Compares this judge with the common ones on published LLaDA outputs, and lists every disagreement.

    python benchmarks/judge_table.py OUTPUTS_FOLDER [--gsm8k TEST.jsonl] [--list DISAGREEMENTS.jsonl]

``OUTPUTS_FOLDER`` holds JSON-lines files with ``question``, ``generation`` and ``ground_truth``; the file's name starts
with gsm8k, math500, countdown or sudoku. ``--gsm8k`` gives the golds that a file lacks, by question.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import other_judges
from igpo_jax.rewards.pool import JudgePool, JudgeSettings
from igpo_jax.rewards.puzzles import sudoku_cells
from igpo_jax.rewards.verdict import judge_one

JUDGES: dict[str, dict[str, Callable[[str, str], bool]]] = {
    "gsm8k": {
        "d1": other_judges.d1_gsm8k,
        "string": other_judges.string_judge,
        "math-verify, box": other_judges.math_verify_box,
        "math-verify, text": other_judges.math_verify_judge,
    },
    "math500": {
        "d1": other_judges.d1_math,
        "string": other_judges.string_judge,
        "math-verify, box": other_judges.math_verify_box,
        "math-verify, text": other_judges.math_verify_judge,
    },
}


def main() -> None:
    """Prints the table; writes one row for each disagreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=pathlib.Path)
    parser.add_argument("--gsm8k", type=pathlib.Path)
    parser.add_argument("--list", type=pathlib.Path)
    options = parser.parse_args()
    golds = _gsm8k_golds(options.gsm8k)
    disagreements = []
    for path in sorted(options.outputs.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        disagreements.extend(_compare(path.stem, rows, golds))
    if options.list:
        options.list.write_text("".join(json.dumps(row) + "\n" for row in disagreements))
    print(f"{len(disagreements)} outputs on which the judges disagree")


def _gsm8k_golds(path: pathlib.Path | None) -> dict[str, str]:
    if path is None:
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["question"].strip(): row["answer"].rpartition("####")[2].strip() for row in rows}


def _compare(name: str, rows: list[dict[str, Any]], golds: dict[str, str]) -> Iterator[dict[str, Any]]:
    kind = name.split("_")[0]
    if kind in ("countdown", "sudoku"):
        yield from _compare_puzzles(name, kind, rows)
        return
    pairs = [(_gold(row, golds), row["generation"]) for row in rows]
    known = [(gold, text) for gold, text in pairs if gold is not None]
    with JudgePool(JudgeSettings()) as pool:
        ours = pool.judge(known)
    verdicts = {label: [judge(gold, text) for gold, text in known] for label, judge in JUDGES[kind].items()}
    columns = {"this judge": [verdict.correct for verdict in ours], **verdicts}
    _print_row(name, len(known), {label: sum(column) for label, column in columns.items()})
    for place, (gold, text) in enumerate(known):
        row = {label: column[place] for label, column in columns.items()}
        if len(set(row.values())) > 1:
            verdict = ours[place]
            yield {
                "file": name,
                "gold": gold,
                "answer": verdict.answer,
                "reason": verdict.reason,
                **row,
                "end": text[-200:],
            }


def _gold(row: dict[str, Any], golds: dict[str, str]) -> str | None:
    gold = golds.get(row["question"].strip(), row["ground_truth"])
    return f"{gold:g}" if isinstance(gold, float) else gold


def _compare_puzzles(name: str, kind: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    totals = {"this judge": 0.0, "d1": 0.0}
    for row in rows:
        truth, text = row["ground_truth"], row["generation"]
        gold = json.dumps(truth) if kind == "countdown" else str(truth)
        verdict = judge_one(gold, text, kind)
        if kind == "countdown":
            ours, theirs = float(verdict.correct), float(other_judges.d1_countdown(*truth, text))
        else:
            puzzle = re.findall(r"\d{16}", row["question"])[0]
            right, empty = other_judges.d1_sudoku(gold, puzzle, text)
            ours = sudoku_cells(puzzle, gold, verdict.answer or "") * empty
            theirs = float(right)
        totals = {"this judge": totals["this judge"] + ours, "d1": totals["d1"] + theirs}
        if ours != theirs:
            yield {
                "file": name, "gold": gold, "answer": verdict.answer, "reason": verdict.reason,
                "this judge": ours, "d1": theirs, "end": text[-200:],
            }  # fmt: skip
    _print_row(name, len(rows), totals)


def _print_row(name: str, count: int, totals: dict[str, float]) -> None:
    print(f"{name} ({count})  " + "  ".join(f"{label} {total:g}" for label, total in totals.items()), flush=True)


if __name__ == "__main__":
    main()
