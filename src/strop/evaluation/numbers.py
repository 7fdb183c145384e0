r"""The numbers in a text, however they are written: what `numeric_match` compares.

The same number:

    digits       of any script: 12, １２, १२, ١٢
    minus        -5, −5, –5, - 5, -$5, -EUR 5, minus 5, negative 5
    grouping     1,234,567  1'234'567  1_234_567  12,34,567 and 1.234.567; also with no-break and thin spaces and with ٬
    fraction     1,234.5  1.234,5  1'234,5  1٬234٫5; 1/2, ½, 1 1/2, 1½
    power        1.2e3, 1.2×10^3, 1.2 x 10**3, 1.2·10³, 10^3; a unit may follow: 1e5km
    scale        1.5 million; also hundred, thousand, billion, trillion, lakh, crore

What has two readings:

    1.234        a point, as in English: a little more than 1; 1,234 is more than a thousand
    3,5          two numbers: only after other groups is a comma a decimal one, as in 1.670,5
    1 234        two numbers, if the space is an ordinary one
    2014-2024    a range: a dash is a minus unless a word or number comes right before it; so is 10 - 20
    score - 5    minus 5, and so is a dash that begins a line: no sign is lost
    5/6/2024     three numbers; 5/6 is one
    12%          12: a unit like any other, and units are not compared
"""

import re
import unicodedata
from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

EXACT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""For arithmetic with numbers: a number itself has all its digits, whatever the context."""

_SPACES = "\u00a0\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
_SAME = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
    | dict.fromkeys("\u2019\u02bc\uff07\u066c", "'")  # Arabic's separator of thousands only ever groups
    | dict.fromkeys(_SPACES, "\u00a0")
    | {"\u066b": ".", "\uff0e": ".", "\uff0c": ",", "\uff0b": "+", "\ufe62": "+", "\uff0f": "/", "\u2044": "/"}
)
_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_LOWERED = str.maketrans(_RAISED, "0123456789-+")
_RAISED_POWER = re.compile(rf"(?<=10)[⁺⁻]?[{_RAISED[:10]}]+")

_SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
_GAP = "[ \t\u00a0]"
_CURRENCY = rf"(?:(?:[A-Z]{{0,3}}[$€£¥₹₩₽₺₫₪฿₴₦]|[A-Z]{{3}}){_GAP}?)"
_RAISED_TO = rf"{_GAP}?(?:\^|\*\*){_GAP}?\{{?"
_INTEGER = r"[-+]?\d{1,6}(?!\d)"
_NUMBER = re.compile(
    rf"""
    (?:(?P<sign>[-+]|(?<!\w)(?i:minus|negative)){_GAP}*{_CURRENCY}?)?
    (?:
        (?:(?<![\d.,/])(?P<whole>\d{{1,3}}){_GAP})?(?<![\d.,/])(?P<over>\d{{1,9}})/(?P<under>\d{{1,9}})(?![\d/]|\.\d)
      | 10{_RAISED_TO}(?P<of_ten>{_INTEGER})\}}?
      | (?:
            (?P<european>[1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{1,30}},\d+|(?:\.\d{{3}}){{2,30}})(?!\d|[.,]\d))
          | (?P<english>(?:[1-9]\d?(?:,\d\d){{1,30}},\d{{3}}|[1-9]\d{{0,2}}(?:,\d{{3}})+)(?!\d)(?:\.\d+)?)
          | (?P<spaced>[1-9]\d{{0,2}}(?P<by>['_\u00a0])\d{{3}}(?:(?P=by)\d{{3}})*(?!\d)(?:[.,]\d+)?)
          | (?P<plain>\d+(?:\.\d+)?|(?<![\d.])\.\d+)
        )
        (?:[eE](?P<e>{_INTEGER})|{_GAP}?(?:[×x*·⋅]|\\times|\\cdot){_GAP}?10{_RAISED_TO}(?P<times>{_INTEGER})\}}?)?
    )
    (?P<scales>(?:(?:-|{_GAP})?(?i:{"|".join(_SCALES)})s?\b){{0,2}})
    """,
    re.VERBOSE,
)
_SEPARATORS = {
    "plain": str.maketrans({}),
    "english": str.maketrans({",": ""}),
    "european": str.maketrans({".": "", ",": "."}),
    "spaced": str.maketrans({"'": "", "_": "", "\u00a0": "", ",": "."}),
}
"""For each way to group digits: what its marks are in Python's."""


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in order; each has all the digits that are written."""
    plain = _in_ascii(text)
    return [value for match in _NUMBER.finditer(plain) for value in _values(plain, match)]


def _in_ascii(text: str) -> str:
    """The text with ASCII's digits and marks, and no-break spaces for all that group."""
    if text.isascii():
        return text
    text = _RAISED_POWER.sub(lambda power: f"^{power[0].translate(_LOWERED)}", _INVISIBLE.sub("", text))
    return "".join(map(_written_out, " " + text, text)).translate(_SAME)


def _written_out(before: str, char: str) -> str:
    """A digit as ASCII's, a character such as ½ as 1/2, and any other as it is."""
    if char.isascii():
        return char
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    over, slash, under = unicodedata.normalize("NFKC", char).partition("\u2044")
    return f"{' ' * before.isdecimal()}{over}/{under}" if slash and under else char


def _values(text: str, match: re.Match[str]) -> Iterator[Decimal]:
    sign = "-" if _is_negative(text, match) else ""
    scale = sum(_SCALES[word] for word in re.findall("|".join(_SCALES), match["scales"].lower()))
    if match["over"]:
        yield from _fraction(match, Decimal(f"{sign}1e{scale}"))
    else:
        exponent = int(match["of_ten"] or match["e"] or match["times"] or 0)
        yield Decimal(f"{sign}{_mantissa(match)}e{exponent + scale}")


def _mantissa(match: re.Match[str]) -> str:
    for grouping, marks in _SEPARATORS.items():
        if match[grouping]:
            return match[grouping].translate(marks)
    return "1"  # of a power of ten


def _fraction(match: re.Match[str], unit: Decimal) -> Iterator[Decimal]:
    """What `1 1/2` says: one number if the fraction is less than 1."""
    whole, over, under = (Decimal(match[name] or 0) for name in ("whole", "over", "under"))
    if under == 0 or (match["whole"] and over >= under):
        parts = [whole] if match["whole"] else []
        parts += [EXACT.divide(over, under)] if under else [over, under]
    else:
        parts = [EXACT.add(whole, EXACT.divide(over, under))]
    yield from (EXACT.multiply(part, unit if i == 0 else abs(unit)) for i, part in enumerate(parts))


def _is_negative(text: str, match: re.Match[str]) -> bool:
    """Whether what is before a number is a minus, and not the dash of a range or of a word."""
    sign = match["sign"]
    if not sign or sign == "+":
        return False
    if sign != "-":
        return True
    before = text[max(0, match.start() - 32) : match.start()]
    if re.search(r"[\w.%‰٪°]\Z", before):
        return False
    spaced = text[match.end("sign")].isspace()
    return not (spaced and re.search(rf"[\d%‰٪°]{_GAP}+\Z", before))
