"""What may never be hinted: worked texts first, then texts whose right answer is known by construction."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.errors import UserError
from igpo_jax.rl.protection import protected_tokens, statement_spans, value_spans, value_visible


def word_offsets(text: str) -> np.ndarray:
    """Words with one token per digit and per sign, as the word-level tokenizer cuts them."""
    return np.array([m.span() for m in re.finditer(r"\d|[^\W\d_]+|[^\w\s]", text)]).reshape(-1, 2)


def shown(text: str, gold: str, exclude: str) -> str:
    """The text with every protected token blotted out."""
    offsets = word_offsets(text)
    out = list(text)
    for (start, end), hidden in zip(offsets, protected_tokens(text, offsets, gold, exclude), strict=True):
        if hidden:
            out[start:end] = "#" * (end - start)
    return "".join(out)


GSM = "She buys 18 eggs.\nShe eats 3, so 21-3 = 18 remain.\n#### 18"
PAPER = "<reasoning>\nIt is 18 here.\nThen 9+9=18.\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>"
META = "We add: 12+6=18.\n#### 18\nThe answer is: 18"


@pytest.mark.parametrize(
    ("text", "exclude", "expected"),
    [
        (GSM, "statement", "She buys 18 eggs.\nShe eats 3, so 21-3 = 18 remain.\n#### ##"),
        (GSM, "value", "She buys 18 eggs.\nShe eats 3, so 21-3 = ## remain.\n#### ##"),
        (GSM, "all_values", "She buys ## eggs.\nShe eats 3, so 21-3 = ## remain.\n#### ##"),
        (
            PAPER,
            "value",
            "<reasoning>\nIt is 18 here.\nThen 9+9=##.\n</reasoning>\n########\n##########\n#########",
        ),
        (META, "value", "We add: 12+6=##.\n#### ##\n### ###### ### ##"),
        ("step 12 then 18 #### 18", "value", "step 12 then ## #### ##"),
        ("First 18.\nSo the answer is 18 dollars", "value", "First ##.\nSo ### ###### ## ## #######"),
        ("Half: $\\boxed{9}$.\nTotal $\\boxed{18}$.", "statement", "Half: $\\boxed{9}$.\nTotal $##########$."),
    ],
)
def test_worked_texts(text, exclude, expected):
    assert shown(text, "18", exclude) == expected


@pytest.mark.parametrize(
    ("gold", "text", "found"),
    [
        ("1234", "it is $1,234.00 in all", ["1,234.00"]),
        ("1,234", "1234 and 1{,}234 and 1,\\!234", ["1234", "1{,}234", "1,\\!234"]),
        ("18", "118 180 3.18 18.5 18,000 1,018", []),
        ("18", "18, 19 and 18. Then (18)", ["18", "18", "18"]),
        ("18", "<<9+9=18>>18 eggs, 18th", ["18", "18", "18"]),
        ("18", "it is 36/2", []),
        ("$18", "costs $18", ["18"]),
        ("\\$18", "costs \\$18", ["18"]),
        ("18 dollars", "18", ["18"]),
        ("18\\text{ cm}", "18 cm", ["18"]),
        ("18\\%", "18% or 0.18", ["18"]),
        ("90^\\circ", "90 degrees", ["90"]),
        ("x = 5", "5 but not 15", ["5"]),
        ("-7", "from -7 to 7", ["7", "7"]),
        ("0.5", "0.50 or .5 or \\frac{1}{2} or 1/2 or 2.5", ["0.50", ".5", "\\frac{1}{2}", "1/2"]),
        ("\\frac{1}{2}", "\\dfrac12, 3/6, 1/20", ["3/6", "\\dfrac12"]),
        ("2x+1", "2x + 1, 12x+1, 2x+10, 2x+1", ["2x + 1", "2x+1"]),
        ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\dfrac{\\pi}{2})", ["(3,\\dfrac{\\pi}{2})"]),
        ("Paris", "Paris, Parisian", ["Paris"]),
        ("5", "5/0", ["5"]),
    ],
)
def test_values_are_whole_numbers_compared_by_value(gold, text, found):
    assert sorted(text[a:b] for a, b in value_spans(text, gold)) == sorted(found)


def test_statement_that_never_closes_runs_to_the_end():
    text = "so\n<answer>\n\\boxed{\\frac{1}{2}"
    assert max(end for _, end in statement_spans(text)) == len(text)
    assert shown("a\n<answer> 18\nb", "18", "statement") == "a\n######## ##\n#"
    assert shown("a \\boxed{18", "18", "statement") == "a #########"


def test_only_the_last_box_is_a_statement_and_braces_nest():
    text = "\\boxed{1} then \\boxed{\\frac{1}{2}} end"
    assert [text[a:b] for a, b in statement_spans(text)] == ["\\boxed{\\frac{1}{2}}"]


def test_tokens_that_straddle_a_border_are_protected():
    text = "is 118 and 18."
    offsets = np.array([(0, 2), (2, 6), (6, 10), (10, 14), (14, 14)])
    np.testing.assert_array_equal(protected_tokens(text, offsets, "18"), [False, False, False, True, False])


def test_value_visible_needs_every_token_of_one_occurrence():
    text = "got 18 and 18.5 then 18"
    offsets = word_offsets(text)
    placed = np.zeros(len(offsets), bool)
    placed[1] = True
    assert not value_visible(text, offsets, "18", placed)
    placed[2] = True
    assert value_visible(text, offsets, "18", placed)
    decimal_only = np.zeros(len(offsets), bool)
    decimal_only[4:8] = True
    assert not value_visible(text, offsets, "18", decimal_only)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="exclude"):
        protected_tokens("a", np.array([(0, 1)]), "1", "values")
    with pytest.raises(UserError, match="empty"):
        protected_tokens("a", np.array([(0, 1)]), "$ $")


def test_no_tokens():
    assert protected_tokens("", np.zeros((0, 2), int), "1").shape == (0,)


WORDS = st.sampled_from(["then", "eggs", "so", "=", "+", "x"])
OTHER_NUMBERS = st.sampled_from(["7", "118", "180", "3.18", "18.5", "18,000", "1,018", "0"])
SAME_NUMBERS = st.sampled_from(["18", "18.0", "18.00"])
PIECES = st.one_of(
    st.tuples(WORDS, st.just(False)), st.tuples(OTHER_NUMBERS, st.just(False)), st.tuples(SAME_NUMBERS, st.just(True))
)
LINES = st.lists(st.lists(PIECES, min_size=1, max_size=6), min_size=1, max_size=5)
STATEMENTS = st.sampled_from(
    ["#### 18", "The answer is: 18", "<answer>\n\\boxed{18}\n</answer>", "</reasoning>\n<answer>18</answer>"]
)


@settings(max_examples=200, deadline=None)
@given(LINES, STATEMENTS, st.sampled_from(["statement", "value", "all_values"]), st.booleans())
def test_exactly_the_defined_tokens_are_protected(lines, statement, exclude, digits):
    """Texts are built piece by piece, so which pieces hold the value is known without looking for it."""
    worded = [n for n, line in enumerate(lines) if any(c.isalnum() for piece, _ in line for c in piece)]
    last = worded[-1] if worded else 0
    text, offsets, expected = "", [], []
    for number, line in enumerate(lines):
        for piece, is_value in line:
            cuts = range(len(piece)) if digits else [0]
            size = 1 if digits else len(piece)
            offsets += [(len(text) + cut, len(text) + cut + size) for cut in cuts]
            reached = exclude == "all_values" or (exclude == "value" and number >= last)
            expected += [is_value and reached] * len(cuts)
            text += piece + " "
        text += "\n"
    for match in re.finditer(r"\S+", statement):
        offsets.append((len(text) + match.start(), len(text) + match.end()))
        expected.append(match.group() != "</reasoning>")
    text += statement
    np.testing.assert_array_equal(protected_tokens(text, np.array(offsets), "18", exclude), expected)
