"""Files that hold no rows as they are: what they are, and how to get rows out of them."""

from pathlib import Path

from strop.errors import DataError
from strop.resolve import COMPRESSED_SUFFIXES, DATA_SUFFIXES

_WORKBOOK = "a workbook: save its sheet as CSV UTF-8"
_PICKLE = "a Python pickle, which can run code as it is loaded: where you trust it, write it as JSON Lines"
_ARCHIVE = "an archive: unpack it and name the files in it"
_PAGE = "a web page, perhaps an error or a login page: download the file itself"
_XML = "XML: write its records as JSON Lines, an object in each line"
_DATABASE = "a database: export the table as CSV or JSON Lines"
_PROSE = 'text without rows: write JSON Lines, a document in each line: {"text": "..."}'
_POINTER = "a pointer of Git LFS, not the file: fetch it with git lfs pull"
_TYPES = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods", ".numbers"), _WORKBOOK),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), _PICKLE),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".htm", ".html"), _PAGE),
    ".xml": _XML,
    **dict.fromkeys((".yaml", ".yml", ".toml"), "no format for rows: write JSON Lines, an object in each line"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".duckdb", ".sql"), _DATABASE),
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".pdf", ".doc", ".docx", ".log"), _PROSE),
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5"), "arrays of numbers: write rows of text as JSON Lines or Parquet"),
    **dict.fromkeys((".avro", ".orc", ".tfrecord"), "of a type that strop does not read: convert it to Parquet"),
    **dict.fromkeys((".lz4", ".br", ".z", ".lzma"), "compressed in a way that strop does not read: unpack it"),
    **dict.fromkeys(COMPRESSED_SUFFIXES, "compressed, and by its name holds no text that strop reads: unpack it"),
}
_CONTENTS = {
    b"version https://git-lfs": _POINTER,
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<?xml": _XML,
    b"PK\x03\x04": "a workbook or a zip archive: save a sheet as CSV UTF-8, or unpack the archive",
    b"\xd0\xcf\x11\xe0": _WORKBOOK,
    b"\x80\x02}": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04\x95": _PICKLE,
    b"\x80\x05\x95": _PICKLE,
    b"sqlite format 3\0": _DATABASE,
    b"%pdf-": "a PDF: write its text as JSON Lines",
    b"7z\xbc\xaf": _ARCHIVE,
    b"rar!": _ARCHIVE,
    b"par1": "Parquet: give it the ending .parquet",
    b"arrow1": "Arrow: give it the ending .arrow",
    b"fea1": "Feather of version 1: write it again with pyarrow, as Parquet",
    b"\x1f\x8b": "compressed twice: unpack it",
}


def refuse_unknown(path: Path) -> str:
    """The message for a file whose name has no known ending: what it is, and how to mend that."""
    suffix = path.suffix.lower()
    what = _TYPES.get(suffix)
    if suffix in COMPRESSED_SUFFIXES and path.stem.lower().endswith(".tar"):
        what = _ARCHIVE
    known = f"known types are {', '.join(DATA_SUFFIXES)}, and text may be compressed ({', '.join(COMPRESSED_SUFFIXES)})"
    return f"{path} is {what} ({known})" if what else f"{path} has an unknown type; {known}"


def refuse_other_content(path: Path, head: bytes) -> None:
    """Refuse a file that its first bytes show to be something else than its name says.

    Raises:
        DataError: Says what it is, and how to mend that.
    """
    start = head.lstrip()[:32].lower()
    for mark, what in _CONTENTS.items():
        if start.startswith(mark.lower()):
            raise DataError(f"{path} is {what}")
