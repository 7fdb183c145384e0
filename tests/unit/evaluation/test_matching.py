import pytest

from strop.evaluation.score import exact_match, numbers, numeric_match, token_f1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The population was 1,234,567 in 2024.", [1234567.0, 2024.0]),
        ("rose by -3.5 % to 12.", [-3.5, 12.0]),
        ("fell by \u22127.25", [-7.25]),
        ("1\u202f234, 1\u00a0234 and 1'234", [1234.0, 1234.0, 1234.0]),
        ("from 2014-2024", [2014.0, 2024.0]),
        ("3,5 and 1,2345", [3.0, 5.0, 1.0, 2345.0]),
        ("1,234.50", [1234.5]),
        ("6.02e23 and 1E-3", [6.02e23, 0.001]),
        ("12% (-4%)", [12.0, -4.0]),
        ("+5", [5.0]),
        ("no figures", []),
        ("12.5.", [12.5]),
        (".5 and -.25", [0.5, -0.25]),
        ("v1.2.3", [1.2, 3.0]),
    ],
)
def test_numbers(text: str, found: list[float]) -> None:
    assert numbers(text) == found


def test_exact_match_folds_white_space_only() -> None:
    assert exact_match(" a  b\n", "a b")
    assert not exact_match("a b.", "a b")
    assert not exact_match("A b", "a b")


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "right"),
    [
        ("It was 1,670.", "1670.0", 0.0, True),
        ("1671", "1670", 0.0, False),
        ("1671", "1670", 0.001, True),
        ("-1670", "1670", 0.001, False),
        ("1670 in 2024", "1670", 0.0, False),
        ("2024 1670", "1670 2024", 0.0, False),
        ("1e-9", "0", 0.5, False),
        ("99 or so", "no number", 0.0, None),
        ("110", "100", 0.1, True),  # off by just as much as is allowed
        ("90", "100", 0.1, True),
        ("100", "90", 0.1, False),  # of the reference's size
        ("100", "110", 0.1, True),
        ("1670", "1670 2024", 0.0, False),
        ("", "1670", 0.0, False),
    ],
)
def test_numeric_match(answer: str, reference: str, tolerance: float, right: bool | None) -> None:
    assert numeric_match(answer, reference, tolerance) is right


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("tower", "Eiffel Tower", 2 / 3),
        ("red red blue", "red green", 2 / 5),
        ("", "the", 1.0),
        ("word", "", 0.0),
        ("theatre", "the atre", 0.0),
        ("red red", "red red", 1.0),
        ("red blue green white", "red", 2 / 5),
    ],
)
def test_token_f1(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
