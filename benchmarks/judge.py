"""Judgements per second of the judge, and the ratio to math-verify alone on the same answers and as many processes.

    python benchmarks/judge.py [--items N] [--workers N] [--cases FILE.jsonl]

Without ``--cases`` the items are made here: distinct answers in the mix of GSM8K and MATH (mostly plain numbers, some
fractions, roots, intervals, polynomials and words), half of them right. No item occurs twice.
"""

import argparse
import json
import multiprocessing
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from igpo_jax.rewards.pool import JudgePool, JudgeSettings


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--cases", type=pathlib.Path)
    options = parser.parse_args()
    items = read_cases(options.cases) if options.cases else make_items(options.items)
    with JudgePool(JudgeSettings(workers=options.workers)) as pool:
        pool.judge([("7", f"\\boxed{{\\sum_{{k=1}}^{n} k}}") for n in range(2, 66)])  # all are ready
        start = time.perf_counter()
        verdicts = pool.judge(items)
        ours = len(items) / (time.perf_counter() - start)
    with multiprocessing.get_context("spawn").Pool(options.workers) as processes:
        processes.map(math_verify, items[:64], chunksize=1)
        start = time.perf_counter()
        theirs_correct = processes.map(math_verify, items, chunksize=16)
        theirs = len(items) / (time.perf_counter() - start)
    agree = sum(verdict.correct == other for verdict, other in zip(verdicts, theirs_correct, strict=True))
    print(f"this judge   {ours:8.0f} judgements/s with {options.workers} workers")
    print(f"math-verify  {theirs:8.0f} judgements/s with {options.workers} processes")
    print(f"ratio        {ours / theirs:8.1f}   ({agree} of {len(items)} verdicts the same)")


def math_verify(item: tuple[str, str]) -> bool:
    """math-verify alone on one item."""
    from benchmarks.other_judges import math_verify_judge

    return math_verify_judge(*item)


def read_cases(path: pathlib.Path) -> list[tuple[str, str]]:
    """Items of a file of cases, without those that test robustness."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["gold"], row["answer"]) for row in rows if "robustness" not in row.get("note", "")]


def make_items(count: int) -> list[tuple[str, str]]:
    """Distinct (gold, completion) pairs."""
    rng = random.Random(0)
    kinds = [plain, counted, fraction, root, interval, polynomial, words]
    weights = [50, 15, 12, 8, 5, 6, 4]
    items: dict[tuple[str, str], None] = {}
    while len(items) < count:
        gold, right, wrong = rng.choices(kinds, weights)[0](rng)
        answer = right if rng.random() < 0.5 else wrong
        items[gold, f"We add up what was found.\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"] = None
    return list(items)


def plain(rng: random.Random) -> tuple[str, str, str]:
    """A whole number, perhaps with separators."""
    value = rng.randrange(100_000)
    return str(value), f"{value:,}", str(value + 1)


def counted(rng: random.Random) -> tuple[str, str, str]:
    """A number with a noun or unit."""
    value = rng.randrange(10_000)
    return str(value), f"{value} apples", f"{value + 1}\\text{{ cm}}"


def fraction(rng: random.Random) -> tuple[str, str, str]:
    """A fraction, enlarged."""
    top, bottom = rng.randrange(1, 400), rng.randrange(2, 400)
    return f"\\frac{{{top}}}{{{bottom}}}", f"{3 * top}/{3 * bottom}", f"\\frac{{{top + 1}}}{{{bottom}}}"


def root(rng: random.Random) -> tuple[str, str, str]:
    """A root, simplified or not."""
    inner, outer = rng.randrange(2, 200), rng.randrange(2, 30)
    return f"{outer}\\sqrt{{{inner}}}", f"\\sqrt{{{outer * outer * inner}}}", f"{outer}\\sqrt{{{inner + 1}}}"


def interval(rng: random.Random) -> tuple[str, str, str]:
    """An interval with a fraction at one end."""
    low, high = rng.randrange(100), rng.randrange(100, 300)
    return f"({low},\\frac{{{high}}}{{2}}]", f"({low}, {high / 2}]", f"[{low}, {high / 2}]"


def polynomial(rng: random.Random) -> tuple[str, str, str]:
    """A product of two linear factors, multiplied out."""
    a, b = rng.randrange(1, 60), rng.randrange(1, 60)
    return f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}", f"x^2+{a + b}x+{a * b + 1}"


def words(rng: random.Random) -> tuple[str, str, str]:
    """A date in words."""
    day, month = rng.randrange(1, 28), rng.choice(["May", "June", "July", "August", "October"])
    return f"\\text{{{month} {day}}}", f"{month} {day}", f"{month} {day + 1}"


if __name__ == "__main__":
    main()
