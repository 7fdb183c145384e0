"""What holds no rows as it is says what it is, by its name or by its first bytes."""

from pathlib import Path

import pytest

from strop.data.readers import read_rows, refuse_unknown
from strop.errors import DataError
from strop.resolve import data_suffix


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("A.JSONL.GZ", ".jsonl"),
        ("a.csv.zst", ".csv"),
        ("a.b.tsv.xz", ".tsv"),
        ("a.json.bz2", ".json"),
        ("a.parquet", ".parquet"),
        ("a.arrow", ".arrow"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.tar.gz", None),
        ("a.txt", None),
        ("jsonl", None),
    ],
)
def test_the_type_of_a_name(name, suffix):
    assert data_suffix(Path(name)) == suffix


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.xlsx", "a workbook: save its sheet as CSV UTF-8"),
        ("a.txt", "text without rows: write JSON Lines"),
        ("a.PKL", "a Python pickle"),
        ("a.zip", "an archive: unpack it"),
        ("a.tar.gz", "an archive: unpack it"),
        ("a.xml", "XML: write its records"),
        ("a.yaml", "no format for rows"),
        ("a.sqlite", "a database: export the table"),
        ("a.html", "a web page"),
        ("a.parquet.gz", "compressed, and by its name holds no text"),
        ("a.what", "has an unknown type; known types are .jsonl, "),
        ("a", "has an unknown type; known types are .jsonl, "),
    ],
)
def test_a_name_of_no_known_type(name, reason):
    assert reason in refuse_unknown(Path(name))
    assert ".jsonl" in refuse_unknown(Path(name))


CONTENTS = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a web page": b"\n<!DOCTYPE html>\n<html>",
    "XML": b"<?xml version='1.0'?><rows/>",
    "a workbook": b"PK\x03\x04\x14\x00",
    "a Python pickle": b"\x80\x04\x95\x10\x00",
    "a database": b"SQLite format 3\0",
    "a PDF": b"%PDF-1.7",
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.arrow"])
def test_the_first_bytes_tell(tmp_path, what, name):
    path = tmp_path / name
    path.write_bytes(CONTENTS[what])
    with pytest.raises(DataError, match=f"{name} is {what}"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.json", b"PAR1abcd", "is Parquet: give it the ending .parquet"),
        ("rows.parquet", b"ARROW1\0\0", "is Arrow: give it the ending .arrow"),
        ("rows.arrow", b"FEA1abcd", "is Feather of version 1"),
    ],
)
def test_another_type_than_its_name_says(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        list(read_rows(tmp_path / name))
