"""The format terms of the released code's reward, as separate columns (the paper's reward is binary)."""


def format_terms(text: str) -> dict[str, float]:
    """Terms of the format reward in the released code (``utils/reward_func.py::count_xml``), at most 0.75 in sum.

    Each of the four tags counts 0.125 when it occurs exactly once (the opening ones with their newline), and a box 0.25
    when it occurs at all.
    """
    once = {
        "reasoning_open": "<reasoning>\n",
        "reasoning_close": "</reasoning>",
        "answer_open": "<answer>\n",
        "answer_close": "</answer>",
    }
    terms = {name: 0.125 * (text.count(tag) == 1) for name, tag in once.items()}
    terms["box"] = 0.25 * ("\\boxed{" in text)
    return terms
