"""Words with a meaning of their own in an answer."""


def names(text: str) -> frozenset[str]:
    """The words of ``text`` as a set."""
    return frozenset(text.split())


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_PARTS = "half third quarter fifth sixth seventh eighth ninth tenth"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"

#: Number words that stand for their value.
NUMBER_WORDS = {
    **{word: value for value, word in enumerate(_SMALL.split())},
    **{word: 10 * (value + 2) for value, word in enumerate(_TENS.split())},
}
#: Words that make a fraction of a number word before them, "two thirds".
FRACTION_WORDS = {
    word + ending: value for value, word in enumerate(_PARTS.split(), start=2) for ending in ("", "s")
} | {"halves": 2, "fourth": 4, "fourths": 4}
#: Words after a number that multiply it.
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
#: Endings of ordinals, written as an exponent.
ORDINALS = frozenset(["st", "nd", "rd", "th"])
#: Names of months and days: a number beside one is a date, not a value with a unit.
CALENDAR = names(
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
)
