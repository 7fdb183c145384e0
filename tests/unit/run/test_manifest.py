"""run.json and its kin as types: what fits is read, what does not is dropped, and nothing else is lost."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from strop.errors import RecipeError, StorageError
from strop.run.folder import RunFolder
from strop.run.lenient import fit, parse_json
from strop.run.manifest import Compared, Estimate, KeptEstimate, Manifest
from strop.run.progress import Progress


@dataclass(frozen=True, slots=True)
class Inner:
    value: float
    low: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int | None = None
    kind: Literal["a", "b"] | None = None
    inner: Inner | None = None
    table: dict[str, Inner | None] = field(default_factory=dict)
    items: tuple[Inner, ...] = ()
    pair: tuple[float, float] = (1.0, 2.0)


SOUND = {"value": 1.0, "low": 0.5}


@pytest.mark.parametrize(
    ("more", "want"),
    [
        ({}, {}),
        ({"count": 3, "kind": "b", "pair": [3, 4]}, {"count": 3, "kind": "b", "pair": (3.0, 4.0)}),
        ({"count": "many", "kind": "c", "pair": [3], "items": {}, "table": 7}, {}),
        ({"inner": SOUND | {"more": 1}}, {"inner": Inner(1.0, 0.5)}),
        ({"inner": {"value": 1.0}}, {}),
        ({"table": {"x": SOUND, "y": {"value": 1}, "z": None}}, {"table": {"x": Inner(1.0, 0.5), "z": None}}),
        ({"items": [None, SOUND, {"value": [], "low": 1}, SOUND]}, {"items": (Inner(1.0, 0.5),) * 2}),
        ({"unknown": {"deep": [1]}}, {}),
    ],
)
def test_what_fits_is_read(more: dict[str, Any], want: dict[str, Any]) -> None:
    contents = {"name": "x\ud800"} | more
    before = json.dumps(contents)
    assert fit(Outer, contents) == replace(Outer(name="x\ud800"), **want)
    assert json.dumps(contents) == before


@pytest.mark.parametrize("contents", [None, [], 3, "x", {}, {"name": None}, {"name": {"x": 1}}, {"count": 1}])
def test_without_what_is_required_it_is_none(contents: Any) -> None:
    assert fit(Outer, contents) is None


def test_numbers_that_are_not_finite_are_none() -> None:
    assert parse_json(b'[1, 2.5, NaN, Infinity, -Infinity, 1e400, "NaN"]') == [1, 2.5, None, None, None, None, "NaN"]


WHOLE = Manifest(
    run_id="abc",
    status="finished",
    attempts=2,
    fingerprints={"data": "d"},
    notes=("a", "b"),
    plan=Estimate("H200", "scaled", dollars=None),
    outcome={"dollars": Compared(1.0, 2.0, -0.5)},
    progress=Progress(step=3),
    others={"trl": "1"},
)


def test_a_manifest_comes_back_from_its_json() -> None:
    contents = json.loads(json.dumps(WHOLE.to_json()))
    assert Manifest.from_json(contents) == WHOLE
    assert contents["trl"] == "1"
    assert "others" not in contents
    assert Manifest().to_json() == {"attempts": 0}
    assert Manifest.from_json({"others": {"x": 1}}).to_json() == {"attempts": 0, "others": {"x": 1}}


@pytest.mark.parametrize("junk", [None, [], {}, "x", 1e400, [[]], {"x": {}}, 10**400])
def test_a_damaged_value_costs_no_other(junk: object) -> None:
    contents = json.loads(json.dumps(WHOLE.to_json()))
    for key in contents:
        read = Manifest.from_json(contents | {key: junk})
        for other in contents.keys() - {key, "trl"}:
            assert getattr(read, other) == getattr(WHOLE, other), (key, other)


def test_updates_are_merged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.manifest is None
    with pytest.raises(RecipeError, match=r"is not a run folder: it has no run\.json"):
        _ = folder.begun
    folder.update(lambda manifest: replace(manifest, dollars=0.5))
    folder.update(lambda manifest: replace(manifest, notes=("a",)))
    written = json.loads((tmp_path / "run.json").read_text())
    assert len(written.pop("seal")) == 64
    assert written == {"attempts": 0, "dollars": 0.5, "notes": ["a"]}
    assert folder.begun == Manifest(dollars=0.5, notes=("a",))


def test_a_prediction_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.plan is None
    kept = KeptEstimate("NVIDIA H200", "0" * 64, Estimate("H200", "measured", seconds=1.5))
    folder.write_plan(kept)
    assert folder.plan == kept
    for old in (b"{}", b'{"device": "x", "of": "y", "line": {"gpu": "H200"}}'):
        (tmp_path / "plan.json").write_bytes(old)
        assert folder.plan is None
    folder.write_plan(kept)
    edited = (tmp_path / "plan.json").read_bytes().replace(b"1.5", b"1.6")
    for damage in (b"", b"[" * 100_000, edited):
        (tmp_path / "plan.json").write_bytes(damage)
        with pytest.raises(StorageError, match=r"plan\.json is damaged"):
            _ = folder.plan
