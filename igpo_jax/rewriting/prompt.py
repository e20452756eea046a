"""What the endpoint is asked: our own wording of the paper's constraints, or a file of the user's."""

import dataclasses
import hashlib
import pathlib
import random
import re

from igpo_jax.data.examples import Example
from igpo_jax.errors import UserError

#: Places that a prompt may have; the first two it must have.
PLACES = ("question", "reasoning", "answer", "words")
_PLACE = re.compile(r"\{(question|reasoning|answer|words)\}")

DEFAULT = r"""Below are a problem and a long worked solution. Write a short solution that stands without the long one.

- Use at most {words} words for the reasoning, fewer where fewer are enough.
- Keep the mathematics: the same quantities, the same method, the same result. Neither add nor correct anything.
- Leave out restarts, second thoughts, repeated checks, and remarks about the task or about yourself.
- Let the last step state the final value.
- Answer in exactly this form, with nothing before or after it:
<reasoning>
the steps
</reasoning>
<answer>
\boxed{the final value}
</answer>

Problem:
{question}

Long solution:
{reasoning}
"""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with its places {question}, {reasoning}, {answer} and {words}."""

    text: str

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the text's sha256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, example: Example, words: int) -> str:
        """The request for one row; what a row's text looks like is never taken for a place."""
        values = {
            "question": example.question,
            "reasoning": example.reasoning,
            "answer": example.answer,
            "words": str(words),
        }
        return _PLACE.sub(lambda place: values[place[1]], self.text)


def load_prompt(path: str) -> Prompt:
    """The prompt of a file; the default one where ``path`` is empty.

    Raises:
        UserError: the file cannot be read, or lacks {question} or {reasoning}.
    """
    if not path:
        return Prompt(DEFAULT)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt={path} cannot be read ({error}); expected a UTF-8 text file") from error
    missing = [f"{{{name}}}" for name in PLACES[:2] if f"{{{name}}}" not in text]
    if missing:
        raise UserError(f"--prompt={path} has no {' and no '.join(missing)}; write it where the row's text belongs")
    return Prompt(text)


def words_bound(example: Example, low: int, high: int, seed: int) -> int:
    """The bound on the words of one row's trace, uniform on low..high and always the same for the same row."""
    return random.Random(f"{seed}/{example.id}/{example.question}").randint(low, high)
