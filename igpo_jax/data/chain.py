"""The quickstart task: word problems about money, in notes of 1, 10 and 100.

No operation ever carries: one digit changes by one and stays a digit (the hundreds stay 1 to 9). So each step is
easy, a question of n steps needs n right steps in a row, and the chain length is the dial of difficulty. A sentence
of the question and a line of the trace have six words and digits each: with equal strides a small model learns in a
few hundred updates which number a step starts from (with unequal ones it takes about twice as many).
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator

from igpo_jax.data.examples import Example
from igpo_jax.data.settings import DataSettings
from igpo_jax.errors import UserError

PEOPLE = {"Mia": "she", "Ana": "she", "Zoe": "she", "Leo": "he", "Sam": "he", "Ben": "he"}
OBJECTS = ("dollars", "euros", "pounds")
GAINS = ("finds", "earns", "wins")
LOSSES = ("loses", "spends", "drops")
AMOUNTS = {"one": 1, "ten": 10, "hundred": 100}

#: The splits in the order in which they choose: a later split takes no sum that an earlier one has.
BUILD_ORDER = ("test", "rl", "sft")
#: Draws per missing row before the lengths are declared too short for the rows asked for.
_PATIENCE = 200

_QUESTION = re.compile(r"^(\w+) has (\d{3}) (\w+)\. (.+) How many \3 does \1 have\?$")
_STEP = re.compile(r"^Then (?:she|he) (\w+) a (hundred|one|ten)\.?$")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One chain: the first number and the operations as (verb, amount in words)."""

    start: int
    steps: tuple[tuple[str, str], ...]

    @property
    def states(self) -> list[int]:
        """The number after each step."""
        states, state = [], self.start
        for verb, amount in self.steps:
            state += AMOUNTS[amount] if verb in GAINS else -AMOUNTS[amount]
            states.append(state)
        return states

    @property
    def sum(self) -> tuple[int, ...]:
        """The arithmetic beneath the words: two problems of equal sums differ in wording only."""
        return (self.start, *self.states)


def draw_problem(rng: random.Random, length: int) -> Problem:
    """Draws a chain of ``length`` operations, none of which carries."""
    start = state = rng.randint(100, 999)
    steps = []
    for _ in range(length):
        verb, amount, state = rng.choice(_moves(rng, state))
        steps.append((verb, amount))
    return Problem(start, tuple(steps))


def _moves(rng: random.Random, state: int) -> list[tuple[str, str, int]]:
    moves = []
    for words, amount in AMOUNTS.items():
        digit = state // amount % 10
        if digit < 9:
            moves.append((rng.choice(GAINS), words, state + amount))
        if digit > (1 if amount == 100 else 0):
            moves.append((rng.choice(LOSSES), words, state - amount))
    return moves


def write_question(problem: Problem, person: str, things: str) -> str:
    """Returns the question in words."""
    steps = " ".join(f"Then {PEOPLE[person]} {verb} a {amount}." for verb, amount in problem.steps)
    return f"{person} has {problem.start} {things}. {steps} How many {things} does {person} have?"


def write_trace(problem: Problem) -> str:
    """Returns the worked solution: a line for each operation, with the number after it."""
    states = problem.states
    return "\n".join(f"{verb} {amount} {state}" for (verb, amount), state in zip(problem.steps, states, strict=True))


def chain_length(example: Example) -> int:
    """Returns the number of operations of a chain example."""
    return example.reasoning.count("\n") + 1


def every_word() -> list[Example]:
    """Returns examples that together hold every word, digit and mark of the task; their sums are arbitrary."""
    steps = tuple(zip(itertools.cycle(AMOUNTS), (*GAINS, *LOSSES), strict=False))
    examples = []
    for row, (person, things) in enumerate(zip(PEOPLE, itertools.cycle(OBJECTS), strict=False)):
        problem = Problem(100 + 98 * row, tuple((verb, amount) for amount, verb in steps))
        question, answer = write_question(problem, person, things), str(problem.states[-1])
        examples.append(Example(f"word-{row}", question, answer, write_trace(problem), "program:chain"))
    return examples


def verify(question: str, reasoning: str, answer: str) -> str | None:
    """Recomputes a row from its question's text; returns what is wrong in words, or None.

    Shares nothing with the generator but the word lists, so a mistake there cannot hide here.
    """
    match = _QUESTION.match(question)
    if match is None:
        return "the question does not have the form of the chain task"
    state = int(match.group(2))
    expected = []
    for sentence in match.group(4).split(". "):
        step = _STEP.match(sentence)
        if step is None:
            return f"'{sentence}' is not an operation"
        verb, amount = step.groups()
        digits = {"one": 1, "ten": 10, "hundred": 100}[amount]
        moved = state + digits if verb in GAINS else state - digits
        if not 100 <= moved <= 999 or sum(a != b for a, b in zip(str(state), str(moved), strict=True)) != 1:
            return f"'{sentence}' carries from {state} to {moved}"
        state = moved
        expected.append(f"{verb} {amount} {state}")
    if reasoning != "\n".join(expected):
        return f"the trace is {reasoning!r}, recomputed {chr(10).join(expected)!r}"
    return None if answer == str(state) else f"the answer is {answer}, recomputed {state}"


def generate(settings: DataSettings) -> dict[str, list[Example]]:
    """Makes the three splits from ``settings.seed``. No two splits share a question, nor the sum beneath one.

    Raises:
        UserError: the lengths are too short for the number of different questions asked for.
    """
    owner: dict[tuple[int, ...], str] = {}
    return {split: list(_split_rows(settings, split, owner)) for split in BUILD_ORDER}


def _split_rows(settings: DataSettings, split: str, owner: dict[tuple[int, ...], str]) -> Iterator[Example]:
    rng = random.Random(f"{settings.seed}/{split}")
    lengths, rows = settings.chain_lengths(split), settings.chain_rows(split)
    seen: set[str] = set()
    for row in range(rows):
        length = lengths[row % len(lengths)]
        problem, question = _new_question(rng, length, split, owner, seen)
        example = Example(f"{split}-{row}", question, str(problem.states[-1]), write_trace(problem), "program:chain")
        wrong = verify(example.question, example.reasoning, example.answer)
        if wrong:
            raise UserError(f"chain row {example.id} is wrong: {wrong}; please report it with the seed {settings.seed}")
        yield example


def _new_question(
    rng: random.Random, length: int, split: str, owner: dict[tuple[int, ...], str], seen: set[str]
) -> tuple[Problem, str]:
    for _ in range(_PATIENCE):
        problem = draw_problem(rng, length)
        question = write_question(problem, rng.choice(list(PEOPLE)), rng.choice(OBJECTS))
        if question not in seen and owner.setdefault(problem.sum, split) == split:
            seen.add(question)
            return problem, question
    raise UserError(
        f"data.{split}_lengths holds {length}, a length with too few different questions for data.{split}_rows"
        f" ({len(seen)} made so far); ask for fewer rows or add longer chains"
    )
