"""Whether an answer is right: by its words, by its numbers, or in part."""

import re
import string
from collections import Counter

_SPACES = "\u202f\u00a0"
_NUMBER = re.compile(
    rf"(?:(?<![\w.])[-+\u2212])?"
    rf"(?:(?:\d{{1,3}}(?:[,'{_SPACES}]\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d+(?!\w))?"
)
_SEPARATORS = re.compile(rf"[,'{_SPACES}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal after normalising white space."""
    return answer.split() == reference.split()


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order.

    Commas, apostrophes and no-break spaces between groups of three digits are dropped; any other comma ends a number,
    so `3,5` is 3 and 5. A minus (also U+2212) counts if no word or number comes right before it: `2014-2024` is
    2014 and 2024. A percent sign is a unit like any other: `12%` is 12.
    """
    return [float(_SEPARATORS.sub("", match).replace("\u2212", "-")) for match in _NUMBER.findall(text)]


def numeric_match(answer: str, reference: str, tolerance: float) -> bool | None:
    """Whether the answer has exactly the reference's numbers, in the same order.

    Args:
        answer: The generated answer.
        reference: The right answer.
        tolerance: Relative: a number is right if it is off by at most `tolerance` times the reference's; 0 asks for
            equal numbers, however they are written (`1,670` and `1670.0`).

    Returns:
        None if the reference has no number.
    """
    wanted, found = numbers(reference), numbers(answer)
    if not wanted:
        return None
    return len(found) == len(wanted) and all(
        abs(a - b) <= tolerance * abs(b) for a, b in zip(found, wanted, strict=True)
    )


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 (Rajpurkar et al. 2016): the harmonic mean of the precision and recall of the answer's words.

    Words are compared as SQuAD's evaluation script does: lower case, without ASCII punctuation and without a, an, the.
    If one side has no words left, the score is 1 if the other has none either, else 0.
    """
    found, wanted = _words(answer), _words(reference)
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
