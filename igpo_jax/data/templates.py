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
    #: What the model's turn begins with: it ends the prompt, so the completion goes on behind it.
    prefill: str = ""

    def prompt(self, question: str) -> str:
        """Returns the prompt for ``question``, without ``prefill``, which stands behind the chat template's marks."""
        return self.prompt_format.replace("{question}", question)

    def completion(self, reasoning: str, answer: str) -> str:
        """Returns the target text for a worked solution and its answer."""
        before, _, rest = self.completion_format.partition("{reasoning}")
        between, _, after = rest.partition("{answer}")
        return before + reasoning + between + answer + after

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the sha256 of the formats and the prefill; the name does not count."""
        parts = [self.prompt_format, self.completion_format, *([self.prefill] if self.prefill else [])]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


#: The format of the paper's appendix. The released code (facebookresearch/igpo, utils/data_utils.py, MIT licence) holds
#: it in a string that is not raw, where "\b" is a backspace: see `_official`.
_PAPER_PROMPT = r"""
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
\boxed{<Your answer>}
</answer>


{question}"""

#: dllm-reasoning/d1, eval/gsm8k.py, Apache-2.0; its MATH-500 prompt differs in blanks and a stray quotation mark.
_D1_PROMPT = (
    r"You are a math expert. You will be given a question to solve. Solve it step by step. "
    r"Wrap the final answer in a \boxed{}. "
    r"""
Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\boxed{...}
</answer>

{question}"""
)

# The zero-shot instruction of OpenCompass's MATH set (math_0shot_gen_11c4b5), in which LLaDA's authors evaluate.
_BOXED_PROMPT = r"""{question}
Please reason step by step, and put your final answer within \boxed{}."""

_TAGGED = r"""
{reasoning}
</reasoning>
<answer>
\boxed{{answer}}
</answer>"""


def _official() -> Template:
    """The released code's prompt and traces: the model never sees ``\\boxed``, and a trace ends in a sentence.

    The released code takes a whole response of MetaMathQA as trace: ``<reasoning>`` is never closed, and the answer
    stands in the response's own last sentence.
    """
    return Template("official", _PAPER_PROMPT.replace("\\b", "\b"), "<reasoning>\n{reasoning}\nThe answer is: {answer}")


TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", "{question}", "{reasoning}\n#### {answer}"),
        Template("paper", _PAPER_PROMPT, "<reasoning>" + _TAGGED),
        _official(),
        Template("d1", _D1_PROMPT, _TAGGED, prefill="<reasoning>"),
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
