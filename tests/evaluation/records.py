"""Samples and reports made by hand."""

from typing import Any

from igpo_jax.evaluation import reports

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='x'\">"
)


def sample(number: int, correct: bool, **changes: Any) -> dict[str, Any]:
    """One line of samples.jsonl."""
    pieces = ["so", " it", " is", f" {number}", ""]
    return {
        "suite": "sums",
        "id": f"test-{number}",
        "sample": 0,
        "question": f"What is {number}?",
        "gold": str(number),
        "text": "".join(pieces),
        "correct": correct,
        "answer": str(number),
        "reason": "the same text" if correct else "another value",
        "timed_out": False,
        "length": 5,
        "truncated": False,
        "has_box": True,
        "pieces": pieces,
        "reveal_step": [1, 3, 0, 2, 4],
    } | changes


def report(records: list[dict[str, Any]], samples: int = 1, **changes: Any) -> dict[str, Any]:
    """The report of such samples."""
    suites = {}
    for suite in dict.fromkeys(record["suite"] for record in records):
        questions = len({record["id"] for record in records if record["suite"] == suite})
        suites[suite] = {
            "questions": questions,
            "questions_of_suite": questions,
            "limited": False,
            "questions_sha256": "q" * 12,
            "sources_sha256": {"test": "s"},
            "metric": "pass@1" if samples == 1 else f"avg@{samples}",
            "samples": samples,
            "template_hash": "t" * 12,
            "sampler": {"length": 8, "steps": 4},
        }
    made = reports.protocol(
        "paper",
        changes.pop("changed", {}),
        suites,
        {"path": "models/<mine>", "kind": "hf", "parameters": 1, "weights": "w" * 12},
        {"name": "judge", "version": "j" * 12},
        seed=0,
        batch=8,
        dtype="float32",
        machine={"device": "cpu"},
        versions={"jax": "1"},
    )
    return reports.report(made | changes, records)
