"""Judges answers: a file of cases, one answer, or the stored outputs of a training run or an evaluation.

Usage:
  python -m igpo_jax.judge --cases=FILE.jsonl
  python -m igpo_jax.judge --gold='\\frac{1}{2}' --answer='so it is \\boxed{0.5}'
  python -m igpo_jax.judge --rejudge=runs/first
  python -m igpo_jax.judge --rejudge=runs/first/eval --write

Cases have the fields ``gold``, ``answer`` (a whole completion) and ``equal``. ``--rejudge`` takes a run directory with
``rollouts/*.jsonl`` or an output folder of igpo_jax.evaluate; of the latter ``--write`` stores the new verdicts, scores
and the judge's version. ``--kind=countdown`` or ``sudoku`` judges puzzles; runs and evaluations know their kinds.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from igpo_jax import cli
from igpo_jax.errors import UserError
from igpo_jax.pages.text import printable
from igpo_jax.rewards.extraction import Extraction, extract_answer
from igpo_jax.rewards.pool import JudgePool, JudgeSettings
from igpo_jax.rewards.verdict import Verdict, judge_one


def define(values: flags.FlagValues) -> None:
    """Declares the command's own flags."""
    flags.DEFINE_string("cases", None, "JSON lines of cases to judge.", flag_values=values)
    flags.DEFINE_string("rejudge", None, "Run or evaluation whose outputs are judged again.", flag_values=values)
    flags.DEFINE_boolean("write", False, "Store the new verdicts of an evaluation.", flag_values=values)
    flags.DEFINE_string("gold", None, "The right answer, for one verdict explained.", flag_values=values)
    flags.DEFINE_string("answer", None, "The completion, or a bare answer, beside --gold.", flag_values=values)
    kinds = "What gold answers are: math, countdown or sudoku; empty = that of the run, else math."
    flags.DEFINE_string("kind", "", kinds, flag_values=values)
    flags.DEFINE_integer("workers", 0, "Worker processes; 0 = one per core, at most 4.", flag_values=values)


def main(command: cli.Command) -> None:
    """Runs one of the three commands."""
    given = command.flags
    if sum(flag is not None for flag in (given.cases, given.rejudge, given.gold)) != 1:
        raise UserError("judge needs one of --cases=FILE, --rejudge=RUN, or --gold=G with --answer=A")
    if (given.gold is None) != (given.answer is None):
        raise UserError("--gold and --answer go together; pass --gold=G --answer=A")
    folder = None if given.rejudge is None else pathlib.Path(given.rejudge)
    evaluated = folder is not None and (folder / "samples.jsonl").is_file()
    if given.write and not evaluated:
        raise UserError("--write stores the verdicts of an evaluation; pass --rejudge=OUT with samples.jsonl in OUT")
    kind = given.kind or (_kind_of_run(folder) if folder is not None and not evaluated else "math")
    with JudgePool(JudgeSettings(workers=given.workers, kind=kind)) as pool:
        if given.cases is not None:
            judge_cases(pool, pathlib.Path(given.cases))
        elif folder is not None and evaluated:
            rejudge_evaluation(pool, folder, given.write)
        elif folder is not None:
            rejudge(pool, folder)
        else:
            explain(pool, given.gold, given.answer)


def judge_cases(pool: JudgePool, path: pathlib.Path) -> None:
    """Judges a file of cases; prints every miss and ``N of M as intended``."""
    rows = read_rows(path, {"gold": str, "answer": str, "equal": bool})
    verdicts = pool.judge([(row["gold"], row["answer"]) for row in rows])
    misses = 0
    for line, (row, verdict) in enumerate(zip(rows, verdicts, strict=True), start=1):
        if verdict.correct != row["equal"]:
            misses += 1
            wanted = "equal" if row["equal"] else "not equal"
            note = f" ({_shown(str(row['note']))})" if "note" in row else ""
            print(f"{path}:{line}: intended {wanted}{note}; {_described(row['gold'], verdict)}")
    print(f"{len(rows) - misses} of {len(rows)} as intended{_stopped(verdicts)}")


def rejudge(pool: JudgePool, run: pathlib.Path) -> None:
    """Judges a run's stored rollouts again; prints each file's count before and now, and every verdict that changed."""
    paths = sorted((run / "rollouts").glob("*.jsonl"))
    if not paths:
        raise UserError(
            f"{run} has neither rollouts/*.jsonl of a training run nor samples.jsonl of an evaluation; check --rejudge"
        )
    totals = [0, 0, 0, 0]
    for path in paths:
        rows = read_rows(path, {"gold": str, "completion": str, "correct": (bool, int, float)})
        verdicts = pool.judge([(row["gold"], row["completion"]) for row in rows])
        before, now, changed = _changes(path, rows, verdicts)
        counts = f"{len(rows)} rollouts, {before} correct before, {now} now, {changed} changed"
        print(f"{path.name}: {counts}{_stopped(verdicts)}")
        totals = [total + part for total, part in zip(totals, (len(rows), before, now, changed), strict=True)]
    print("all: {} rollouts, {} correct before, {} now, {} changed".format(*totals))


def _kind_of_run(run: pathlib.Path) -> str:
    """The ``judge.kind`` of a training run's config.json; math where the folder has none."""
    try:
        return str(json.loads((run / "config.json").read_bytes())["judge"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return "math"


def rejudge_evaluation(pool: JudgePool, folder: pathlib.Path, write: bool) -> None:
    """Judges an evaluation's samples again, each suite by its kind; with ``write`` its files get the new verdicts."""
    from igpo_jax.evaluation import rejudging

    path = folder / "samples.jsonl"
    rows = read_rows(path, {"suite": str, "id": str, "gold": str, "text": str, "correct": bool})
    kinds = rejudging.kinds_of(folder)
    # Puzzles need no worker: they are checked on their parsed tree.
    maths = iter(pool.judge([(row["gold"], row["text"]) for row in rows if kinds.get(row["suite"], "math") == "math"]))
    verdicts = [
        next(maths) if kind == "math" else judge_one(row["gold"], row["text"], kind)
        for row in rows
        for kind in [kinds.get(row["suite"], "math")]
    ]
    before, now, changed = _changes(path, rows, verdicts)
    print(
        f"{path.name}: {len(rows)} samples, {before} correct before, {now} now, {changed} changed{_stopped(verdicts)}"
    )
    if write:
        print(rejudging.write(folder, rows, verdicts))


def _changes(path: pathlib.Path, rows: list[dict[str, Any]], verdicts: Sequence[Verdict]) -> tuple[int, int, int]:
    """Prints every verdict that changed; returns how many were correct before, are now, and have changed."""
    changed = 0
    for line, (row, verdict) in enumerate(zip(rows, verdicts, strict=True), start=1):
        if bool(row["correct"]) != verdict.correct:
            changed += 1
            stored = "correct" if row["correct"] else "not correct"
            print(f"{path}:{line}: stored as {stored}; {_described(row['gold'], verdict)}")
    return sum(bool(row["correct"]) for row in rows), sum(verdict.correct for verdict in verdicts), changed


def explain(pool: JudgePool, gold: str, text: str) -> None:
    """Prints where the answer was found and why it is equal to the gold answer or not."""
    found = extract_answer(text)
    if found.source == "none" and text.strip():
        found = Extraction(text.strip(), "no marked answer: all of the text")
        text = f"\\boxed{{{text}}}"
    verdict = pool.judge([(gold, text)])[0]
    print(f"gold    {_shown(gold)}")
    print(f"answer  {'none' if verdict.answer is None else _shown(verdict.answer)}  ({found.source})")
    print(f"verdict {'equal' if verdict.correct else 'not equal'}: {printable(verdict.reason)}")


def read_rows(path: pathlib.Path, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Args:
        path: the file.
        fields: the type, or types, that each field must have.

    Raises:
        UserError: the file cannot be read, or a line is not an object with these fields.
    """
    try:
        lines = path.read_bytes().rstrip().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a file of JSON lines") from error
    rows = []
    for place, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {place} is not JSON ({error}); expected one object per line") from error
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                found = f"{field}={row.get(field)!r}" if isinstance(row, dict) and field in row else f"no {field}"
                raise UserError(f"{path}, line {place} has {found}; expected the fields {', '.join(fields)}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows; expected JSON lines with the fields {', '.join(fields)}")
    return rows


def _described(gold: str, verdict: Verdict) -> str:
    answer = "no answer" if verdict.answer is None else f"answer {_shown(verdict.answer)}"
    return f"gold {_shown(gold)}, {answer}: {printable(verdict.reason)}"


def _shown(text: str) -> str:
    """At most 100 letters on one line, with nothing that a terminal would act on."""
    short = text if len(text) <= 100 else text[:97] + "..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in short)


def _stopped(verdicts: Sequence[Verdict]) -> str:
    count = sum(verdict.timed_out for verdict in verdicts)
    return f", {count} stopped at a limit" if count else ""


if __name__ == "__main__":
    cli.run(main, define=define, requires=(), common=())
