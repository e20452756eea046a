"""Two evaluations of the same questions in pairs: the difference, its interval, and the exact test of it."""

import dataclasses
import pathlib
from typing import Any

from igpo_jax import settings
from igpo_jax.errors import UserError
from igpo_jax.evaluation.reports import percent
from igpo_jax.evaluation.store import REPORT, SAMPLES, read_json, read_samples
from igpo_jax.training import console, statistics

#: Parts of a report that the scores of two evaluations must share, beside each suite's own protocol.
_SAME = ("protocol", "judge")
#: Parts that may differ, but are worth a line: they move scores too.
_NOTED = ("seed", "batch", "dtype", "machine", "versions")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation from its folder."""

    name: str
    report: dict[str, Any]
    right: dict[str, dict[str, list[bool]]]  # by suite and question id, one entry a sample


def read(place: str) -> Evaluated:
    """Reads a report and the samples beside it.

    Raises:
      UserError: one of them is missing or damaged, or they are not of one evaluation.
    """
    path = pathlib.Path(place)
    path = path / REPORT if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report.get("scores"), dict) or not isinstance(report.get("suites"), dict):
        raise UserError(f"{path} is no report of igpo_jax.evaluate; it has no scores")
    right: dict[str, dict[str, list[bool]]] = {suite: {} for suite in report["scores"]}
    samples = path.parent / SAMPLES
    for record in read_samples(samples):
        right.setdefault(record["suite"], {}).setdefault(record["id"], []).append(bool(record.get("correct")))
    for suite, score in report["scores"].items():
        found = sum(len(row) for row in right[suite].values()), sum(sum(row) for row in right[suite].values())
        if found != (score["questions"] * score["samples"], score["correct"]):
            raise UserError(
                f"{samples} has {found[0]} samples of {suite}, {found[1]} of them right, but {path.name} counts "
                f"{score['questions'] * score['samples']} and {score['correct']}; evaluate again"
            )
    return Evaluated(place, report, right)


def compare(first: Evaluated, second: Evaluated) -> dict[str, Any]:
    """Compares the suites that both evaluations have.

    Returns:
      Under ``suites``, for each: both scores, ``difference`` (second minus first) with its 95% bootstrap interval over
      questions, how many questions only the one or the other gets more often right, and ``p``, the two-sided exact
      p-value: McNemar's test for one sample a question, else the sign test over questions, which is the same for one.
      Under ``notes``, what else differs and may move scores.

    Raises:
      UserError: there is no common suite, or a suite's questions or protocol differ; the difference is shown.
    """
    common = [suite for suite in first.report["scores"] if suite in second.report["scores"]]
    if not common:
        raise UserError(
            f"{first.name} has {', '.join(first.report['scores'])} and {second.name} has "
            f"{', '.join(second.report['scores'])}: no suite is in both"
        )
    for part in _SAME:
        _require_same(part, first, second, first.report.get(part), second.report.get(part))
    suites = {}
    for suite in common:
        _require_same_questions(suite, first, second)
        _require_same(f"suites.{suite}", first, second, _protocol(first, suite), _protocol(second, suite))
        suites[suite] = {"metric": first.report["scores"][suite]["metric"]} | _paired(
            first.right[suite], second.right[suite], first.report.get("seed", 0)
        )
    before = {part: first.report.get(part) for part in _NOTED}
    after = {part: second.report.get(part) for part in _NOTED}
    notes = [f"{field}: {old!r} and {new!r}" for field, old, new in settings.changed_fields(before, after)]
    return {"first": first.name, "second": second.name, "suites": suites, "notes": notes}


def _protocol(evaluated: Evaluated, suite: str) -> dict[str, Any]:
    """A suite's protocol; where its files lay is left out, since their questions have a digest of their own."""
    return {name: value for name, value in evaluated.report["suites"][suite].items() if name != "sources_sha256"}


def _require_same(part: str, first: Evaluated, second: Evaluated, old: Any, new: Any) -> None:
    differences = settings.changed_fields({part: old}, {part: new})
    if differences:
        shown = "; ".join(f"{field} is {a!r} and {b!r}" for field, a, b in differences[:3])
        way = "run judge --rejudge=OUT --write on both" if part == "judge" else "evaluate both under one protocol"
        raise UserError(f"{first.name} and {second.name} were not evaluated alike: {shown}; {way}")


def _require_same_questions(suite: str, first: Evaluated, second: Evaluated) -> None:
    """Raises UserError, naming a question, where the ids differ; the protocol has a digest of what is behind them."""
    ours, theirs = set(first.right[suite]), set(second.right[suite])
    for one, other, missing in ((first, second, ours - theirs), (second, first, theirs - ours)):
        if missing:
            question = min(missing, key=lambda name: (len(name), name))
            raise UserError(
                f"{first.name} has {_count(first, suite)} and {second.name} has {_count(second, suite)} of {suite}: "
                f"question {question} is in {one.name} but not in {other.name}; evaluate both on the same questions"
            )


def _count(evaluated: Evaluated, suite: str) -> str:
    """Such as "the first 20 of 1319 questions"."""
    asked = evaluated.report["suites"][suite]
    limited = f"the first {asked['questions']} of {asked['questions_of_suite']}"
    return f"{limited if asked['limited'] else asked['questions']} questions"


def _paired(first: dict[str, list[bool]], second: dict[str, list[bool]], seed: int) -> dict[str, Any]:
    shares = [(sum(row) / len(row), sum(second[name]) / len(second[name])) for name, row in first.items()]
    differences = [after - before for before, after in shares]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return {
        "questions": len(shares),
        "scores": [sum(column) / len(shares) for column in zip(*shares, strict=True)],
        "difference": sum(differences) / len(shares),
        "interval": list(statistics.bootstrap_mean(differences, seed=seed)),
        "only_first": worse,
        "only_second": better,
        "test": "exact McNemar" if all(len(row) == 1 for row in first.values()) else "exact sign test over questions",
        "p": statistics.sign_test(better, worse),
    }


def table(found: dict[str, Any]) -> str:
    """The comparison as aligned text."""
    header = ("suite", "metric", "A", "B", "B - A", "95% interval", "A better", "B better", "questions", "p")
    rows = []
    for suite, pair in found["suites"].items():
        low, high = (f"{100 * end:+.1f}" for end in pair["interval"])
        rows.append(
            (
                suite,
                pair["metric"],
                *(percent(score) for score in pair["scores"]),
                f"{100 * pair['difference']:+.1f}",
                f"{low} to {high}",
                str(pair["only_first"]),
                str(pair["only_second"]),
                str(pair["questions"]),
                f"{pair['p']:.2g}",
            )
        )
    tests = sorted({pair["test"] for pair in found["suites"].values()})
    lines = [f"A  {found['first']}", f"B  {found['second']}", console.table(rows, header)]
    lines.append(f"p: {' and '.join(tests)}, two-sided; interval: bootstrap over questions")
    return "\n".join([*lines, *(f"note: they differ in {note}" for note in found["notes"])])
