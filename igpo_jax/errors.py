"""The one error type that a user is meant to read, and helpers for its sentences: the nearest choice, a flag's name."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping


class UserError(ValueError):
    """Bad input: one sentence naming the file, field or flag, what was found, what was expected, and what to do."""


@contextlib.contextmanager
def named_as(words: Mapping[str, str]) -> Iterator[None]:
    """Puts a command's own flags into the sentences of what it calls, which name fields of a config.

    Args:
      words: what a sentence says -> what it says instead, replaced in this order.
    """
    try:
        yield
    except UserError as error:
        sentence = str(error)
        for field, flag in words.items():
            sentence = sentence.replace(field, flag)
        raise UserError(sentence) from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the choice closest to ``name``, or all choices where none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (choose one of: {', '.join(known)})"


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError when ``value`` of ``field`` is not one of ``choices``."""
    known = tuple(choices)
    if value not in known:
        raise UserError(f"{field} is '{value}', which is not a known choice{nearest(value, known)}")
