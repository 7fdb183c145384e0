import pytest

from strop.errors import RecipeError
from strop.parallel.place import Place, here

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
    **{"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_that_nobody_has_started_with_others_is_alone(environment: dict[str, str]) -> None:
    assert here(environment) == Place()
    assert here(environment).leads


def test_torchruns_environment_is_read() -> None:
    place = here(TORCHRUN)
    assert place == Place(rank=5, ranks=8, local_rank=1, local_ranks=4, machine=1)
    assert not place.leads
    assert here({name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}).machine == 1


@pytest.mark.parametrize("missing", sorted(TORCHRUN.keys() - {"GROUP_RANK"}))
def test_an_environment_that_lacks_something_is_refused_by_name(missing: str) -> None:
    with pytest.raises(RecipeError, match=missing):
        here({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "8"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("LOCAL_RANK", "4"),
        ("LOCAL_WORLD_SIZE", "9"),
        ("WORLD_SIZE", ""),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=name):
        here(TORCHRUN | {name: value})
