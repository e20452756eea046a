"""Countdown and Sudoku: answers checked on their parsed tree, with the four operations and nothing else allowed."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from igpo_jax.errors import UserError
from igpo_jax.rewards.answers.cleaning import clean
from igpo_jax.rewards.answers.grammar import read_answer
from igpo_jax.rewards.answers.nodes import Node, NotUnderstood
from igpo_jax.rewards.answers.values import Inexact, NoValue, exact

_MAX_LETTERS = 300
_OPERATIONS = frozenset(["add", "negate", "multiply", "divide", "inverse"])
_DIGITS = re.compile(r"\d(?:[\s,|;&.+\-_\\\[\]]*\d)*")


def countdown_gold(numbers: Sequence[int], target: int) -> str:
    """The gold answer of a Countdown puzzle, ``[[44, 19, 35], 98]``."""
    return json.dumps([list(numbers), target])


def judge_countdown(gold: str, answer: str) -> tuple[bool, str]:
    """Whether ``answer`` reaches the target with each number used exactly once, and a few words on why.

    Of ``95 - 73 + 7 = 29`` the left side counts. Allowed are + - * /, signs, brackets and whole numbers.

    Raises:
        UserError: ``gold`` is not what ``countdown_gold`` writes.
    """
    numbers, target = _read_puzzle(gold)
    try:
        tree = _expression(answer)
        used = [int(leaf.name) for leaf in _leaves(tree)]
        value = exact(tree)
    except NotUnderstood as error:
        return False, f"not an expression in + - * / ({error})"
    except (NoValue, Inexact):
        return False, "the expression has no value"
    if Counter(used) != Counter(numbers):
        return False, f"uses {sorted(used)}, not {sorted(numbers)}"
    return value == target, f"the value is {value}" + ("" if value == target else f", not {target}")


def _read_puzzle(gold: str) -> tuple[list[int], int]:
    try:
        numbers, target = json.loads(gold)
        if all(type(number) is int for number in [*numbers, target]):
            return numbers, target
    except (ValueError, TypeError):
        pass
    raise UserError(f"a Countdown gold is {gold[:80]!r}; expected numbers and target such as [[44, 19, 35], 98]")


def _expression(answer: str) -> Node:
    if len(answer) > _MAX_LETTERS:
        raise NotUnderstood("too long")
    tree = read_answer(clean(answer))
    return tree.items[0] if tree.kind == "relation" and set(tree.name.split()) == {"="} else tree


def _leaves(node: Node) -> Iterator[Node]:
    if node.kind == "number":
        if not node.name:
            raise NotUnderstood("a number that is not written in digits")
        yield node
        return
    if node.kind not in _OPERATIONS:
        raise NotUnderstood(node.kind)
    for item in node.items:
        yield from _leaves(item)


def judge_sudoku(gold: str, answer: str) -> tuple[bool, str]:
    """Whether ``answer`` is the solution ``gold`` digit by digit; blanks and rules between the digits do not count.

    Raises:
        UserError: ``gold`` is not 16 digits.
    """
    if not re.fullmatch(r"[1-4]{16}", gold):
        raise UserError(f"a Sudoku gold is {gold[:80]!r}; expected the solution as 16 digits from 1 to 4")
    grid = sudoku_grid(answer)
    if grid is None:
        return False, "not a grid of 16 digits"
    wrong = sum(a != b for a, b in zip(grid, gold, strict=True))
    return wrong == 0, "solved" if wrong == 0 else f"{wrong} of 16 cells are wrong"


def sudoku_grid(answer: str) -> str | None:
    """The 16 digits of an answer, None where it has another number of them or anything else than digits and rules."""
    bare = answer.strip().strip("`$. \n")
    if len(bare) > _MAX_LETTERS or not _DIGITS.fullmatch(bare):
        return None
    digits = re.sub(r"\D", "", bare)
    return digits if len(digits) == 16 else None


def sudoku_cells(puzzle: str, solution: str, answer: str) -> float:
    """The share of the puzzle's empty cells (0) that ``answer`` fills as ``solution`` does; 0 without a full grid."""
    grid = sudoku_grid(answer)
    empty = [place for place, digit in enumerate(puzzle) if digit == "0"]
    if grid is None or not empty:
        return 0.0
    return sum(grid[place] == solution[place] for place in empty) / len(empty)
