"""The judges that ours is compared with behave as they are described."""

import pytest

from benchmarks import other_judges


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("18", "18.0", False),
        ("1234", "1,234", False),
        ("\\frac{1}{2}", "0.5", True),
        ("5", "x=5", True),
        ("10", "10\\%", True),
        ("18", "18 \\text{ dollars}", True),
        ("\\frac12", "\\tfrac{1}{2}", True),
        ("\\frac{3}{4}", "3/4", True),
        ("\\sqrt{5}", "\\sqrt5", True),
        (None, None, True),
        ("5", None, False),
    ],
)
def test_string_equality(gold, answer, equal):
    assert other_judges.string_equal(gold, answer) == equal


def test_d1_takes_the_first_box_and_ours_the_last():
    assert other_judges.d1_gsm8k("17", "\\boxed{17} no, \\boxed{18}")
    assert other_judges.d1_math("18", "\\boxed{17} no, \\boxed{18}")
    assert other_judges.d1_gsm8k("20", "\\boxed{...} \\boxed{20 hats}")
    assert other_judges.d1_gsm8k("20", "<answer>10 and 20</answer>")
    assert other_judges.d1_countdown([8, 2, 3], 12, "\\boxed{8 \\div 2 \\times 3 = 12}")
    assert not other_judges.d1_countdown([8, 2, 3], 12, "\\boxed{8 + 4}")
    assert other_judges.d1_sudoku("1234341221434321", "1230341221434320", "<answer>\n123434\n</answer>") == (1, 2)
