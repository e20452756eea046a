"""Where the final answer of a completion is found, and that the working never stands in for it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.rewards.extraction import MAX_TEXT, extract_answer


@pytest.mark.parametrize(
    ("text", "answer", "source"),
    [
        (r"first \boxed{3}, then \boxed{5}.", "5", "box"),
        (r"\fbox{3}", "3", "box"),
        ("</reasoning>\n<answer>\nboxed{27}\n</answer>", "27", "box"),
        (r"\ boxed {27}", "27", "box"),
        ("\x08oxed{27}", "27", "box"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "box"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"\boxed{\boxed{4}}", "4", "box"),
        ("\\boxed{\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", "box"),
        ("\\boxed{1375\n</answer>", "1375", "open box"),
        ("\\boxed{1375\nand more words", "1375", "open box"),
        ("\\boxed{\n1375\n</answer>", "1375", "open box"),
        ("\\boxed{120</answer}", "120", "open box"),
        ("\\boxed{120</ans", "120", "open box"),
        ("\\boxed{246\\text{ feet>", "246\\text{ feet", "open box"),
        ("\\boxed{7\n</answer> later {braces} close}", "7", "open box"),
        ("<answer>\n5 changes/day\n</answer>", "5 changes/day", "tag"),
        ("<answer>7</answer> <answer>8", "8", "tag"),
        ("<answer>The answer is 8.</answer>", "8", "tag"),
        ("<answer>\n8\n<answer>\n", "8", "tag"),
        ("<answer>7</answer> <answer>", None, "tag"),
        ("<answer>7<answer>8<answer>9", "9", "tag"),
        ("48/2 = <<48/2=24>>24\n#### 1,072", "1,072", "hashes"),
        ("#### Step 1\nwork\n#### 12", "12", "hashes"),
        ("The answer is: $\\sqrt{5}$", "$\\sqrt{5}$", "phrase"),
        ("The answer is 3.5. I hope it is correct.", "3.5", "phrase"),
        ("**Final Answer**\n\n**73**", "73", "phrase"),
        ("Final Answer: The final answer is $4$. I hope", "$4$", "phrase"),
        ("**Answer:** 9", "9", "phrase"),
        ("-42", "-42", "bare"),
        (r"\boxed{x < a}", "x < a", "box"),
    ],
)
def test_the_answer_is_found(text, answer, source):
    found = extract_answer(text)
    assert (found.answer, found.source) == (answer, source)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "So 12 + 30 = 42, and the total is 42.",
        "The number of utensils is 34.\n<answer>\n\\boxed{...}\n</answer>",
        "We get \\boxed{5}. Wait.\n<answer>\n\\boxed{",
        "\\boxed{5} and again \\boxed{}",
        "<answer>\n\\boxed{<Your answer>}\n</answer>",
        "\\boxed{\\boxed{...}",
        "\\boxed{\\ldots}",
        "\\boxed{\\text{your answer}}",
        "\\boxed{5<|mdm_mask|>}",
        "\\boxed{[MASK]}",
        "<answer>\n{}\n</answer>",
        "<answer></answer> but the answer is 5",
        "<|eot_id|>\\boxed{5}",
        "#### ",
    ],
)
def test_no_answer_is_read_out_of_working_or_placeholders(text):
    assert extract_answer(text).answer is None


def test_text_after_the_first_end_token_is_ignored():
    assert extract_answer("\\boxed{42}<|eot_id|>\\boxed{7}").answer == "42"
    assert extract_answer("\\boxed{42}<|endoftext|>\\boxed{7}").answer == "42"


@given(st.text(alphabet="\\boxed{}<>/answer#*:. 15\n|_", max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_an_answer_or_none(text):
    found = extract_answer(text)
    assert found.answer is None or found.answer in text


@pytest.mark.parametrize("piece", ["\\boxed{", "{", " ", "</", "answer is ", "#### ", "**", "<answer>", "\\", "*: "])
def test_time_is_linear_in_the_text(piece):
    text = "\\boxed{" + piece * (MAX_TEXT // len(piece))
    start = time.process_time()
    extract_answer(text)
    assert time.process_time() - start < 2.0
