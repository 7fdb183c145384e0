"""How files that are given to others name a base model."""

import os
from pathlib import Path

import pytest

from strop.model.pretrained.locate import shared_name

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("name", ["org/name", "package:pkg/x.gguf", "models/x.gguf", "./model", "nowhere"])
def test_a_name_stays_as_the_recipe_gave_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.gguf").touch()
    assert shared_name(name, "main") == (name, "main")


def test_a_folder_of_the_hubs_cache_is_named_by_its_id_and_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--some-name.v2" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert shared_name(str(snapshot)) == ("org/some-name.v2", COMMIT)
    link = tmp_path / "mine"
    os.symlink(snapshot, link)
    assert shared_name(str(link)) == ("org/some-name.v2", COMMIT)
    for other in (snapshot / "inner", tmp_path / "models--org--x" / "snapshots" / "main", tmp_path / "models--org--x"):
        other.mkdir(parents=True, exist_ok=True)
        assert shared_name(str(other)) == (str(other), None)
