import pytest

from igpo_jax.data.templates import TEMPLATES, Template, get_template
from igpo_jax.errors import UserError


def test_plain():
    template = get_template("plain")
    assert template.prompt("How many {x}?") == "How many {x}?"
    assert template.completion("1 + 1 = 2", "2") == "1 + 1 = 2\n#### 2"


def test_paper_has_a_real_boxed_command_and_every_tag():
    template = get_template("paper")
    prompt = template.prompt("QUESTION")
    assert r"\boxed{" in prompt and "\b" not in prompt
    assert prompt.endswith("\n\nQUESTION")
    for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"):
        assert prompt.count(tag) == 1
    completion = template.completion("steps", "18")
    assert completion == "<reasoning>\nsteps\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>"


def test_official_differs_from_paper_by_the_lost_backslash():
    official, paper = get_template("official"), get_template("paper")
    assert official.prompt("Q") == paper.prompt("Q").replace("\\boxed", "\boxed")
    assert "\x08oxed{<Your answer>}" in official.prompt("Q") and "\\" not in official.prompt("Q")
    # A trace of the released code: the tag is never closed, and the answer stands in the last sentence.
    assert official.completion("steps", "18") == "<reasoning>\nsteps\nThe answer is: 18"


def test_a_prefill_is_part_of_the_format():
    d1 = get_template("d1")
    assert d1.prefill == "<reasoning>" and not d1.completion("steps", "18").startswith("<reasoning>")
    assert (d1.prefill + d1.completion("steps", "18")) == get_template("paper").completion("steps", "18")
    base = Template("a", "{question}", "{reasoning} {answer}")
    assert base.hash != Template("a", "{question}", "{reasoning} {answer}", prefill="<").hash


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_passes_through_untouched(template):
    question = r"What is {answer} of \frac{1}{2}, {question}?"
    assert question in template.prompt(question)
    completion = template.completion("{answer} and {reasoning}", r"\frac{1}{2}")
    assert "{answer} and {reasoning}" in completion and completion.count(r"\frac{1}{2}") == 1


def test_hashes_follow_the_text_and_not_the_name():
    hashes = {template.hash for template in TEMPLATES.values()}
    assert len(hashes) == len(TEMPLATES) and all(len(value) == 12 for value in hashes)
    base = Template("a", "{question}", "{reasoning} {answer}")
    assert base.hash == Template("b", "{question}", "{reasoning} {answer}").hash
    assert base.hash != Template("a", "{question}\n", "{reasoning} {answer}").hash
    # A hash that changes makes reports of older runs incomparable: change these only with the formats.
    assert {name: template.hash for name, template in TEMPLATES.items()} == {
        "plain": "8bab91c1602d",
        "paper": "bc284f62c648",
        "official": "e92a2651aca2",
        "d1": "324dd007d784",
        "boxed": "85308bd8c612",
    }


def test_unknown_template():
    with pytest.raises(UserError, match=r"template is 'papper'.*did you mean 'paper'"):
        get_template("papper")
