r"""Spellings of one answer brought to one: Unicode, LaTeX layout commands, separators; and a reduced text."""

import re

_UNICODE = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "×": r"\times ",
    "✕": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": r"\div ",
    "⁄": "/",
    "∕": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∞": r"\infty ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "∖": r"\setminus ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "，": ",",
    "：": ":",
    "；": ";",
    "（": "(",
    "）": ")",
    "％": "%",
    "＝": "=",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u200b": "",
    "\ufeff": "",
}
_GREEK_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = dict(zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True))
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_TABLE = str.maketrans(
    {
        **_UNICODE,
        **{letter: f"\\{name} " for letter, name in _GREEK.items()},
        **{letter: rf"\frac{{{top}}}{{{bottom}}}" for letter, (top, bottom) in _FRACTIONS.items()},
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢ", "0123456789+-ni")

_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|allowbreak|hfill|"
    r"centering|hline|rm|it|bf|tiny|small|large|Large|LARGE|huge|Huge|normalsize)(?![a-zA-Z])|\\!"
)
_TEMPERATURE = re.compile(
    r"(\^\s?(?:\{\s?\\circ\s?\}|\\circ))\s{0,2}(?:[CF]|\\(?:text|mathrm)\s?\{\s?[CF]\s?\})(?![A-Za-z])"
)
_PLAIN_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)")
_PHANTOM = re.compile(r"\\[hv]?phantom\s?(?:\{[^{}]{0,40}\}|[^\\{])")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,|,\\!|\{,\}|\\,)\s{0,2}\d{3})+(?!\d)")
_SEPARATOR = re.compile(r"[,{}\\!\s]+")
_WRAPPER = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|mathrm|operatorname)\s?\{([^{}\\]*)\}")
_LAID_OUT = re.compile(r"(?<!\\)\\[;:>, ()\[\]$%]|\\q?quad(?![a-zA-Z])|[$%~\"]")


def clean(text: str) -> str:
    """One spelling for what means the same: ASCII letters and LaTeX commands, no layout, no thousands separators."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]{1,40}", lambda found: "^{" + found[0].translate(_RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢ]{1,40}", lambda found: "_{" + found[0].translate(_LOWERED) + "}", text)
    text = _join_thousands(_PHANTOM.sub(" ", text.translate(_TABLE)))
    text = _PLAIN_TIMES.sub(r"\\times ", text)
    return " ".join(_LAYOUT.sub(" ", _TEMPERATURE.sub(r"\1", text)).split())


def _join_thousands(text: str) -> str:
    """Removes the separators of well-formed thousands groups.

    Within a bracket a bare comma without a blank separates members, (100,200), unless the text also has members
    separated by comma and blank, (1,000, 2,000).
    """
    inside_separates = ", " not in text

    def join(found: re.Match[str]) -> str:
        before = text[: found.start()]
        depth = sum(before.count(letter) for letter in "([") - sum(before.count(letter) for letter in ")]")
        depth += before.count(r"\{") - before.count(r"\}")
        bare = "\\" not in found[0] and "{" not in found[0]
        if bare and (" " in found[0] or (depth > 0 and inside_separates)):
            return found[0]
        return _SEPARATOR.sub("", found[0])

    return _THOUSANDS.sub(join, text)


def as_text(cleaned: str) -> str:
    """Cleaned text for comparing as text: no blanks, delimiters, signs of currency and percent, no full stop."""
    text = _LAID_OUT.sub(" ", _WRAPPER.sub(r"\1", cleaned)).strip(" .,;:")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return re.sub(r"(?<!\d) | (?!\d)", "", text)
