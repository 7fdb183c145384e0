import pytest

from strop.readable import clock, counted


@pytest.mark.parametrize(("seconds", "want"), [(0, "0s"), (59.6, "1m00s"), (725, "12m05s"), (12000, "3h20m")])
def test_clock(seconds: float, want: str) -> None:
    assert clock(seconds) == want


@pytest.mark.parametrize(
    ("count", "words", "want"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (2844, ("training row",), "2,844 training rows"),
        (1, ("row is", "rows are"), "1 row is"),
        (2, ("row is", "rows are"), "2 rows are"),
    ],
)
def test_counted(count: int, words: tuple[str, ...], want: str) -> None:
    assert counted(count, *words) == want
