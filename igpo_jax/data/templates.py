"""Every prompt and completion format, in one place. A report names the format by its hash."""

import dataclasses
import hashlib

from igpo_jax.errors import check_choice


@dataclasses.dataclass(frozen=True)
class Template:
    """How a question becomes a prompt, and a solution becomes the text that the model should write.

    Formats are filled by plain replacement, so braces in questions and LaTeX in answers pass through untouched.
    """

    name: str
    #: Holds ``{question}`` once.
    prompt_format: str
    #: Holds ``{reasoning}`` and ``{answer}`` once each.
    completion_format: str

    def prompt(self, question: str) -> str:
        """Returns the prompt for ``question``."""
        return self.prompt_format.replace("{question}", question)

    def completion(self, reasoning: str, answer: str) -> str:
        """Returns the target text for a worked solution and its answer."""
        before, _, rest = self.completion_format.partition("{reasoning}")
        between, _, after = rest.partition("{answer}")
        return before + reasoning + between + answer + after

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the sha256 of both formats; the name does not count."""
        return hashlib.sha256(f"{self.prompt_format}\0{self.completion_format}".encode()).hexdigest()[:12]


_PAPER_PROMPT = r"""Work through the problem below step by step and reply in exactly this form:
<reasoning>
the steps, one after the other
</reasoning>
<answer>
\boxed{the final value}
</answer>

{question}"""

_PAPER_COMPLETION = r"""<reasoning>
{reasoning}
</reasoning>
<answer>
\boxed{{answer}}
</answer>"""

# The zero-shot instruction of OpenCompass's MATH set (math_0shot_gen_11c4b5), in which LLaDA's authors evaluate.
_BOXED_PROMPT = r"""{question}
Please reason step by step, and put your final answer within \boxed{}."""

TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", "{question}", "{reasoning}\n#### {answer}"),
        Template("paper", _PAPER_PROMPT, _PAPER_COMPLETION),
        Template("boxed", _BOXED_PROMPT, "{reasoning}\n\\boxed{{answer}}"),
    )
}


def get_template(name: str) -> Template:
    """Returns the template called ``name``.

    Raises:
        UserError: there is no such template.
    """
    check_choice("template", name, TEMPLATES)
    return TEMPLATES[name]
