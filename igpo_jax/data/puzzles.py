"""Countdown and Sudoku 4x4: questions in words, training puzzles made from a seed, and solutions step by step."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction

from igpo_jax.errors import UserError

#: Draws per missing puzzle before the supply is declared exhausted.
_PATIENCE = 1000
_LARGEST = 99
_OPERATIONS = ("+", "-", "*", "/")
_CELLS = range(16)
#: For each cell the others of its row, column and 2x2 box.
_PEERS = tuple(
    tuple(
        other
        for other in _CELLS
        if other != cell
        and (
            other // 4 == cell // 4
            or other % 4 == cell % 4
            or (other // 8, other % 4 // 2) == (cell // 8, cell % 4 // 2)
        )
    )
    for cell in _CELLS
)


def countdown_question(numbers: Sequence[int], target: int) -> str:
    """Returns a Countdown puzzle in words."""
    given = ", ".join(map(str, numbers))
    return (
        f"Combine the numbers {given} with +, -, *, / and brackets so that the result is {target}."
        " Use each number exactly once. The answer is the expression alone, without an equals sign."
    )


def countdown_gold(numbers: Sequence[int], target: int) -> str:
    """Returns what the judge checks an expression against, e.g. ``[[44, 19, 35], 98]``."""
    return json.dumps([list(numbers), target])


def solve_countdown(numbers: Sequence[int], target: int) -> tuple[str, list[str]] | None:
    """Returns an expression for ``target`` and its steps such as ``44 - 19 = 25``; None where there is none.

    Every division has a whole result, as in the game.
    """
    return _search([(Fraction(n), str(n)) for n in numbers], [], target)


def _search(terms: list[tuple[Fraction, str]], steps: list[str], target: int) -> tuple[str, list[str]] | None:
    if len(terms) == 1:
        value, text = terms[0]
        return (text, steps) if value == target else None
    for (i, one), (j, other) in itertools.permutations(enumerate(terms), 2):
        rest = [term for place, term in enumerate(terms) if place not in (i, j)]
        for operation in _OPERATIONS:
            result = _apply(one[0], operation, other[0])
            if result is None:
                continue
            text = f"({one[1]} {operation} {other[1]})" if rest else f"{one[1]} {operation} {other[1]}"
            step = f"{one[0]} {operation} {other[0]} = {result}"
            found = _search([(result, text), *rest], [*steps, step], target)
            if found:
                return found
    return None


def _apply(one: Fraction, operation: str, other: Fraction) -> Fraction | None:
    if operation == "/":
        value = one / other if other else None
        return value if value is not None and value.denominator == 1 else None
    return {"+": one + other, "-": one - other, "*": one * other}[operation]


def make_countdown(rng: random.Random, count: int, known: set[str]) -> Iterator[tuple[list[int], int]]:
    """Draws ``count`` solvable puzzles of three numbers up to 99 and a target from 1 to 100.

    Args:
        rng: the source of the draws.
        count: puzzles wanted.
        known: golds that are not drawn; those that are drawn are added.
    """
    for _ in range(count):
        for _ in range(_PATIENCE):
            numbers = [rng.randint(1, _LARGEST) for _ in range(3)]
            target = _reach(rng, numbers)
            key = countdown_gold(sorted(numbers), target)
            if 1 <= target <= 100 and key not in known:
                known.add(key)
                yield numbers, target
                break
        else:
            raise UserError(f"{count} different Countdown puzzles cannot be drawn; lower data.sft_rows or data.rl_rows")


def _reach(rng: random.Random, numbers: list[int]) -> int:
    value = Fraction(numbers[0])
    for number in numbers[1:]:
        reached = _apply(value, rng.choice(_OPERATIONS), Fraction(number))
        value = value + number if reached is None else reached
    return int(value)


def sudoku_question(puzzle: str) -> str:
    """Returns a Sudoku 4x4 in words; ``puzzle`` has 16 digits, row by row, 0 for an empty cell."""
    return (
        f"Fill the empty cells (0) of this 4x4 Sudoku with digits from 1 to 4: {puzzle}. Its 16 digits are the rows"
        " from top to bottom. Every row, every column and every 2x2 box holds each digit once. The answer is the"
        " solved grid as 16 digits."
    )


def solve_sudoku(puzzle: str) -> tuple[list[str], list[str]]:
    """Returns up to two solutions, and the steps of the first such as ``row 1 column 3: 4``.

    Steps fill the cell with the fewest candidates first, so that most of them follow from what stands already.
    """
    solutions: list[str] = []
    order: list[int] = []
    _fill(list(puzzle), [], solutions, order)
    steps = [f"row {cell // 4 + 1} column {cell % 4 + 1}: {solutions[0][cell]}" for cell in order] if solutions else []
    return solutions, steps


def _fill(grid: list[str], filled: list[int], solutions: list[str], order: list[int]) -> None:
    empty = [cell for cell in _CELLS if grid[cell] == "0"]
    if not empty:
        if not solutions:
            order.extend(filled)
        solutions.append("".join(grid))
        return
    cell = _tightest(grid, empty)
    for digit in _candidates(grid, cell):
        grid[cell] = digit
        _fill(grid, [*filled, cell], solutions, order)
        grid[cell] = "0"
        if len(solutions) > 1:
            return


def _candidates(grid: Sequence[str], cell: int) -> list[str]:
    seen = {grid[other] for other in _PEERS[cell]}
    return [digit for digit in "1234" if digit not in seen]


def _tightest(grid: Sequence[str], empty: Sequence[int]) -> int:
    """The empty cell with the fewest candidates, the first of several."""
    best, fewest = empty[0], 5
    for cell in empty:
        count = len(_candidates(grid, cell))
        if count < fewest:
            best, fewest = cell, count
        if count < 2:
            break
    return best


def make_sudoku(rng: random.Random, count: int, known: set[str]) -> Iterator[tuple[str, str]]:
    """Draws ``count`` puzzles with exactly one solution and 6 to 12 empty cells, as (puzzle, solution).

    Args:
        rng: the source of the draws.
        count: puzzles wanted.
        known: puzzles that are not drawn; those that are drawn are added.
    """
    for _ in range(count):
        for _ in range(_PATIENCE):
            solution = _grid(rng)
            puzzle = _dig(rng, solution, rng.randint(6, 12))
            if puzzle not in known:
                known.add(puzzle)
                yield puzzle, solution
                break
        else:
            raise UserError(f"{count} different Sudoku puzzles cannot be drawn; lower data.sft_rows or data.rl_rows")


def _grid(rng: random.Random) -> str:
    grid = ["0"] * 16
    grid[:4] = rng.sample("1234", 4)
    while "0" in grid:
        cell = _tightest(grid, [place for place in _CELLS if grid[place] == "0"])
        choices = _candidates(grid, cell)
        if not choices:
            return _grid(rng)
        grid[cell] = rng.choice(choices)
    return "".join(grid)


def _dig(rng: random.Random, solution: str, holes: int) -> str:
    puzzle = list(solution)
    for cell in rng.sample(list(_CELLS), 16):
        if puzzle.count("0") == holes:
            break
        puzzle[cell] = "0"
        if len(solve_sudoku("".join(puzzle))[0]) > 1:
            puzzle[cell] = solution[cell]
    return "".join(puzzle)
