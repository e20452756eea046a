"""Exact reading of plain numbers."""

import re
from fractions import Fraction

_NUMBER = re.compile(r"([+\-−])?(\d{1,3}(?:,\d{3})+|\d{1,400})(\.\d{1,400})?|([+\-−])?(\.\d{1,400})")


def plain_number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number ("1,250.00", "-3", "$5"), None where the text is anything else."""
    bare = text.strip().removeprefix("\\$").removeprefix("$").removesuffix("\\%").removesuffix("%").strip()
    found = _NUMBER.fullmatch(bare)
    return Fraction(bare.replace(",", "").replace("−", "-")) if found else None
