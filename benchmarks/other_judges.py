"""Common judges of published results, rewritten from their descriptions, to compare this judge with.

``string_equal`` is the string normalisation of the MATH evaluation, ``d1_*`` the parser of the d1 evaluation,
``math_verify_*`` the math-verify library alone.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

# --- MATH's string normalisation ------------------------------------------------------------------------------------


def string_equal(gold: str | None, answer: str | None) -> bool:
    """Equality of the normalised strings; two missing answers are equal."""
    if gold is None or answer is None:
        return gold is answer
    try:
        return _normal(gold) == _normal(answer)
    except (IndexError, ValueError):
        return gold == answer


def _normal(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    text = text.split("\\text{ ")[0]
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _braced_fractions(text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    slash = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return f"\\frac{{{int(slash[1])}}}{{{int(slash[2])}}}" if slash else text


def _braced_fractions(text: str) -> str:
    first, *rest = text.split("\\frac")
    for part in rest:
        first += "\\frac"
        if part.startswith("{"):
            first += part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            first += f"{{{part[0]}}}{part[1:]}"
        else:
            first += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return first


def last_box(text: str) -> str | None:
    """The content of the last ``\\boxed`` or ``\\fbox`` with balanced braces."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    depth = 0
    for place in range(text.index("{", start), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[text.index("{", start) + 1 : place]
    return None


def string_judge(gold: str, text: str) -> bool:
    """String equality of the last box."""
    return string_equal(gold, last_box(text))


# --- d1's parser ----------------------------------------------------------------------------------------------------


def _tag(text: str) -> str | None:
    found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[1].strip() if found else None


def d1_gsm8k(gold: str, text: str) -> bool:
    """The first box that is not a placeholder as a number, or its first number; else the answer tag's last number."""
    value: float | None = None
    for box in re.findall(r"\\boxed{(.*?)}", text):
        content = box.strip()
        if content and content != "..." and not re.fullmatch(r"\.+", content):
            numbers = re.findall(r"-?\d+(?:\.\d+)?", content)
            value = _float(content) if _float(content) is not None else (float(numbers[0]) if numbers else None)
            if value is not None:
                break
    tag = _tag(text)
    if value is None and tag:
        numbers = re.findall(r"-?\d+\.?\d*", tag)
        value = _float(tag) if _float(tag) is not None else (float(numbers[-1]) if numbers else None)
    return value is not None and value == _float(gold.replace(",", ""))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def d1_math(gold: str, text: str) -> bool:
    """The last box, else the answer tag, by string equality."""
    box = last_box(text)
    answer = box if box is not None else _tag(text)
    return answer is not None and string_equal(gold, answer)


def d1_countdown(numbers: list[int], target: int, text: str) -> bool:
    """The last box, the answer tag or all of the text: the left side of "=" with exactly the given numbers."""
    box = last_box(text)
    expression = box if box is not None else _tag(text) or text
    for latex, plain in (("\\times", "*"), ("\\div", "/"), ("\\cdot", "*")):
        expression = expression.replace(latex, plain)
    left = expression.split("=")[0]
    if Counter(map(int, re.findall(r"\d+", left))) != Counter(numbers):
        return False
    try:
        return abs(_arithmetic(ast.parse(left.strip()[:200], mode="eval").body) - target) < 1e-5
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False


_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _arithmetic(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
    raise ValueError("not an arithmetic expression")


def d1_sudoku(solution: str, puzzle: str, text: str) -> tuple[int, int]:
    """Right and empty cells: the first pattern that matches gives the digits, padded with 0 or cut to 16."""
    patterns = (
        r"<answer>.*?```\s*([\d\s]+)```",
        r"<answer>(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|</answer>)",
        r"</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)",
        r".*?(\d{16})\s*</answer>",
        r"\b(\d{16})\b",
    )
    digits = ""
    for pattern in patterns:
        found = re.search(pattern, text, re.DOTALL)
        if found and found[1].strip():
            digits = re.sub(r"\D", "", found[1])
            break
    grid = digits[:16].ljust(16, "0")
    empty = [place for place, digit in enumerate(puzzle) if digit == "0"]
    return sum(grid[place] == solution[place] for place in empty), len(empty)


# --- math-verify alone ----------------------------------------------------------------------------------------------


def math_verify_judge(gold: str, text: str) -> bool:
    """math-verify's own extraction and equality on a text."""
    from math_verify import parse, verify

    wrapped = parse(f"${gold}$", parsing_timeout=None)
    return bool(verify(wrapped, parse(text, parsing_timeout=None), timeout_seconds=None))


def math_verify_box(gold: str, text: str) -> bool:
    """math-verify on the last closed box only."""
    box = last_box(text)
    return box is not None and math_verify_judge(gold, f"\\boxed{{{box}}}")
