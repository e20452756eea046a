"""Text made harmless: what a model writes is never trusted on a screen or in a page."""

import unicodedata

#: Format characters that join or shape letters and change nothing else.
JOINERS = "‌‍"


def printable(text: str) -> str:
    """``text`` with everything a terminal could take for a command written out, as in "\\x1b".

    Line ends and tabs stay. Control characters, those that turn the direction of text around, invisible ones, and
    code points without a character are replaced.
    """
    return "".join(map(_harmless, text))


def _harmless(character: str) -> str:
    if character in "\n\t" or character in JOINERS:
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{{{code:x}}}"
    return character
