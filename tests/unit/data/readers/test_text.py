"""Encodings and compression: the same rows come out, and damage is never read past."""

import bz2
import gzip
import lzma
import sys

import pytest

from strop.data.examples import Fault
from strop.data.readers import read_rows
from strop.errors import DataError

ROW = '{"q": "a", "a": "b"}\n'
LINE = '{{"q": "{}", "a": "b"}}\n'


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        told = []
        return list(read_rows(path, note=told.append)), told

    return read


ENCODINGS = {
    "utf-8": [],
    "utf-8-sig": [],
    "utf-16": ["read as UTF-16"],
    "utf-16-le": ["read as UTF-16-LE"],
    "utf-16-be": ["read as UTF-16-BE"],
    "utf-32": ["read as UTF-32"],
    "utf-32-le": ["read as UTF-32-LE"],
    "utf-32-be": ["read as UTF-32-BE"],
    "cp1252": ["read as cp1252"],
}
TEXTS = ["Größe „als“ – Übung", "un élève, l’œuvre", "Þórður sér ægi", "5 € ± 3 °C ½ «so»"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_every_encoding_gives_the_same_rows(read, encoding, chunk, name, monkeypatch):
    monkeypatch.setattr("strop.data.readers.compression._CHUNK", chunk)
    texts = TEXTS * 300
    content = {
        "rows.jsonl": "".join(map(LINE.format, texts)),
        "rows.json": "[" + ",\n".join(map(LINE.format, texts)) + "]",
        "rows.csv": "q|a\n" + "".join(f"{text}|b\n" for text in texts),
    }[name]
    found, told = read(content.encode(encoding), name)
    assert [row for _, row in found] == [{"q": text, "a": "b"} for text in texts]
    assert [note for note in told if "bars" not in note] == ENCODINGS[encoding]


# name -> (what a row of a file of many has as bytes, which other row there is)
NOT_CP1252 = {
    "damaged UTF-8": (b"caf\xe9 and \x96", "café".encode()),
    "one byte": (b"caf\xe9", b"a"),
    "cut in a quote": (b"so\xe2\x80 and \xe2\x80", b"a"),
    "cut after two bytes of three": (b"\xe2\x82 \xe2\x82", b"a"),
    "surrogates": (b"\xed\xa0\x80\xed\xb0\x80", b"a"),
    "overlong": (b"\xc0\xaf\xc0\xaf", b"a"),
    "undefined bytes": (b"caf\xe9 \x81 caf\xe9", b"a"),
    "Cyrillic": ("Где мельница?".encode("cp1251"), b"a"),
    "Greek": ("Πού είναι ο μύλος".encode("cp1253"), b"a"),
    "Hebrew": ("איפה הטחנה".encode("cp1255"), b"a"),
    "Polish": ("Żółw źrebię dziękuję, młyn".encode("cp1250"), b"a"),
    "DOS": ("un élève très léger".encode("cp850"), b"a"),
    "Mac": ("un élève très léger".encode("mac_roman"), b"a"),
    "Japanese": ("水車はどこですか".encode("euc_jp"), b"a"),
    "Chinese": ("水车在哪里".encode("gbk"), b"a"),
}


@pytest.mark.parametrize("name", NOT_CP1252)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_neither_is_a_fault_of_its_row(read, name, is_first):
    bad, other = NOT_CP1252[name]
    lines = [LINE.encode().replace(b"{{", b"{").replace(b"}}", b"}").replace(b"{}", text) for text in (bad, other)]
    found, told = read(b"".join(lines if is_first else lines[::-1]) + ROW.encode() * 3)
    assert told == []
    assert [isinstance(row, Fault) for row in found] == [is_first, not is_first, False, False, False]
    assert found[not is_first].reason.startswith("not UTF-8: byte ")


def test_the_end_of_a_large_file_decides_for_its_start(read):
    """The first bytes beyond ASCII could be cp1252, and UTF-8 comes megabytes later."""
    early, late = b'{"q": "caf\xe9 \x96"}\n', '{"q": "café"}\n'.encode()
    padding = ROW.encode() * 100_000
    found, told = read(early + padding + late)
    assert [row for row in found if isinstance(row, Fault)] == [found[0]]
    assert (found[-1][1], told) == ({"q": "café"}, [])
    found, told = read(early + padding)
    assert (found[0][1], told) == ({"q": "café –"}, ["read as cp1252"])


def test_damaged_utf_16_is_refused(read):
    with pytest.raises(DataError, match=r"begins as UTF-16, but from about line 2 on it is not: truncated data"):
        read((ROW * 2).encode("utf-16")[:-1])


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
KINDS = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}


def compress(ending: str, content: bytes) -> bytes:
    if ending == "zst":
        return pytest.importorskip("zstandard").compress(content)
    return COMPRESS[ending](content)


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSON", "rows.csv"])
def test_compressed(read, ending, name):
    content = ("q,a\n" + "a,b\n" * 5000) if name.endswith("csv") else ROW * 5000
    packed = compress(ending, content.encode())
    for parts in (packed, packed + b"\0" * 512):
        found, told = read(parts, f"{name}.{ending}")
        assert [row for _, row in found] == [{"q": "a", "a": "b"}] * 5000
        assert told == [KINDS[ending]]
    assert read(packed, name)[1] == [KINDS[ending]]


@pytest.mark.parametrize("ending", KINDS)
def test_one_archive_after_the_other(read, ending):
    found, _ = read(compress(ending, ROW.encode()) + compress(ending, ROW.encode() * 2), f"rows.jsonl.{ending}")
    assert [origin.line for origin, _ in found] == [1, 2, 3]


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_wherever_an_archive_is_cut_it_is_refused(read, ending, name):
    packed = compress(ending, (ROW if name.endswith("jsonl") else "q,a\na,b\n").encode() * 3)
    for whole in (b"", packed):
        for length in range(8, len(packed), 3):
            with pytest.raises(DataError, match=r"is cut short|is damaged"):
                read(whole + packed[:length], f"{name}.{ending}")


@pytest.mark.parametrize("ending", KINDS)
def test_what_follows_an_archive_is_refused(read, ending):
    packed = compress(ending, ROW.encode())
    with pytest.raises(DataError, match=r"is damaged|is cut short"):
        read(packed + ROW.encode() * 30, f"rows.jsonl.{ending}")


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_a_wrong_checksum_is_refused(read, ending):
    packed = bytearray(compress(ending, ROW.encode() * 50))
    packed[len(packed) // 2] ^= 0x10
    with pytest.raises(DataError, match=r"is damaged|is cut short"):
        read(bytes(packed), f"rows.jsonl.{ending}")


def test_not_compressed_despite_its_name(read):
    assert read(ROW.encode(), "rows.jsonl.gz")[1] == ["not compressed, despite its name"]


def test_zstd_says_what_to_install(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"needs zstandard: pip install 'strop\[zstd\]'"):
        read(b"\x28\xb5\x2f\xfd" + bytes(20), "rows.jsonl.zst")
