import pytest

from strop.evaluation.score import exact_match, numeric_match, token_f1


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
        ("1.3", "1", 0.3, True),
        ("1e999", "1e998", 0.0, False),
        ("9007199254740993", "9007199254740992", 0.0, False),
        ("- 5", "5", 0.0, False),
        ("minus 5", "\u2013$5", 0.0, True),
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
