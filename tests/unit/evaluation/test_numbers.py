"""Numbers in texts: the same value in whatever way it is written, and never another's."""

import random
import time
from decimal import Decimal

import pytest

from strop.evaluation.numbers import numbers
from strop.evaluation.score import numeric_match


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The population was 1,234,567 in 2024.", "1234567 2024"),
        ("rose by -3.5 % to 12.", "-3.5 12"),
        ("1\u202f234, 1\u00a0234 and 1'234", "1234 1234 1234"),
        ("from 2014-2024, 2014\u20132024, 10 \u2013 20, 10%\u201320%", "2014 2024 2014 2024 10 20 10 20"),
        ("5 -3", "5 -3"),
        ("A-5, COVID\u201119, terminus 5", "5 19 5"),
        ("score - 5", "-5"),
        ("- 5\n- 6", "-5 -6"),
        ("-$5, $-5, - $ 5, \u2212US$5, minus EUR 5, negative 5", "-5 -5 -5 -5 -5 -5"),
        ("3,5 and 1,2345 and 0,500 and 1,234,5", "3 5 1 2345 0 500 1234 5"),
        ("1.234 and 1.670,5 and 1.234.567", "1.234 1670.5 1234567"),
        ("1 234 and 1,234 567", "1 234 1234 567"),
        ("6.02e23 and 1E-3", "6.02e23 0.001"),
        ("1e5km, 1.2 x 10^-3, 10\u00b3, 210^5, x^2", "1e5 0.0012 1000 210 5 2"),
        ("12% (-4%)", "12 -4"),
        ("+5", "5"),
        ("no figures", ""),
        ("12.5.", "12.5"),
        (".5 and -.25 and 1..5", "0.5 -0.25 1 5"),
        ("v1.2.3", "1.2 3"),
        ("1/2, 1 1/2, -1\u00bd, 3 5/2, 1/0, 5/6/2024", "0.5 1.5 -1.5 3 2.5 1 0 5 6 2024"),
        ("1.5 million, $2-billion, 5 hundred thousand, 3 lakh", "1.5e6 2e9 5e5 3e5"),
        ("m\u00b2 and \u2460", ""),
    ],
)
def test_numbers(text: str, found: str) -> None:
    assert numbers(text) == [Decimal(number) for number in found.split()]


# --------------------------------------------------------------- a value, written in many ways, without strop's tables

ZEROS = {"Arabic": 0x660, "Persian": 0x6F0, "Devanagari": 0x966, "Bengali": 0x9E6, "Thai": 0xE50, "full width": 0xFF10}
MINUSES = ("-", "\u2212", "\u2013", "\u2010", "\u2011", "\u2012", "\ufe63", "\uff0d", "\u2014")
SPELT = (
    "minus ",
    "Minus ",
    "negative ",
    "- ",
    "\u2212 ",
    "\u2013 ",
    "\u2212\u00a0",
    "\u2013\u2009",
    "-$",
    "\u2212\u20ac ",
)
GROUPS = (",", "'", "\u2019", "_", "\u00a0", "\u202f", "\u2009", "\u2007", "\u200a")
FRAMES = (
    "{}",
    "It was {}.",
    "({})",
    "**{}**",
    "= {} km",
    "about {}, more or less",
    "\u200f{}",
    '"{}"',
    "{}%",
    "x: {}\n",
)


def grouped(digits: str, mark: str, indian: bool = False) -> str:
    head, last = digits[:-3], digits[-3:]
    size, parts = 2 if indian else 3, [last] if last else []
    while head:
        head, part = head[:-size], head[-size:]
        parts.insert(0, part)
    return mark.join(parts)


def ways(whole: int, decimals: str) -> list[str]:
    """The same magnitude, written as people do in many countries."""
    digits = str(whole)
    point = f".{decimals}" if decimals else ""
    written = [
        digits + point,
        digits + point + ("00" if decimals else ".00"),
        f"{digits}{point}e0",
        f"{digits}{point}E+00",
    ]
    written += [f"{digits}{decimals}e-{len(decimals)}km", f"{digits}{decimals}\u00d710^-{len(decimals)}"]
    raised = str(len(decimals)).translate(
        {48 + i: c for i, c in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076")}
    )
    written += [f"{digits}{decimals} \u00b7 10\u207b{raised}", f"{digits}{decimals} x 10**-{len(decimals)} m"]
    if whole >= 1000:
        written += [grouped(digits, mark) + point for mark in GROUPS]
        written.append(grouped(digits, ",", indian=True) + point)
        if decimals:
            written += [grouped(digits, mark) + f",{decimals}" for mark in (".", "'", "\u202f")]
        elif whole >= 10**6:
            written.append(grouped(digits, "."))
    for zero in ZEROS.values():
        script = {48 + i: zero + i for i in range(10)}
        written.append((digits + point).translate(script))
        if whole >= 1000:
            written.append((grouped(digits, ",") + point).translate(script))
    arabic = {48 + i: 0x660 + i for i in range(10)}
    written.append((grouped(digits, "\u066c") + (f"\u066b{decimals}" if decimals else "")).translate(arabic))
    return written


def drawn(rng: random.Random) -> tuple[int, str]:
    whole = rng.choice([rng.randrange(10), rng.randrange(1000), rng.randrange(10**4), rng.randrange(10**7), 10**12 + 1])
    return whole, rng.choice(["", "5", "25", "125", "0625", str(rng.randrange(1, 1000)).zfill(3)])


def test_every_way_to_write_a_number_is_the_same_number() -> None:
    rng = random.Random(0)
    for _ in range(300):
        whole, decimals = drawn(rng)
        value = Decimal(f"{whole}.{decimals or 0}")
        for written in ways(whole, decimals):
            frame = rng.choice(FRAMES)
            assert numbers(frame.format(written)) == [value], (frame, written)
            minus = rng.choice(MINUSES + SPELT)
            assert numbers(frame.format(minus + written)) == [-value], (frame, minus, written)


def test_another_number_or_another_sign_never_matches() -> None:
    rng = random.Random(1)
    for _ in range(300):
        whole, decimals = drawn(rng)
        other, more = rng.choice([(whole + 1, decimals), (whole * 10, decimals), (whole, decimals + "1"), drawn(rng)])
        value, another = Decimal(f"{whole}.{decimals or 0}"), Decimal(f"{other}.{more or 0}")
        answers, references = ways(other, more), ways(whole, decimals)
        for answer in answers:
            reference, minus = rng.choice(references), rng.choice(MINUSES + SPELT)
            assert numeric_match(answer, reference, 0.0) is (value == another), (answer, reference)
            if another:
                assert numeric_match(minus + answer, answer, 0.0) is False, (minus, answer)
                assert numeric_match(answer, minus + answer, 0.0) is False, (minus, answer)


@pytest.mark.parametrize(
    "text",
    ["1.234" + ".567" * 20_000 + ".5", "1" + ",23" * 20_000, "9" * 80_000, "- " * 40_000, "1 " * 40_000, "1/" * 40_000],
)
def test_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    start = time.process_time()
    numbers(text)
    assert time.process_time() - start < 3


def test_a_whole_number_and_a_fraction_of_one_or_more_are_two() -> None:
    assert [float(each) for each in numbers("2 3/3")] == [2.0, 1.0]
    assert [float(each) for each in numbers("2 2/3")] == [pytest.approx(2 + 2 / 3)]
