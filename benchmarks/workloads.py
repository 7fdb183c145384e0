"""The rows that every throughput benchmark trains on: strop's tokens and labels, in strop's order.

census   generated census questions in the alpaca template; a shared header, loss on answers
long     documents of 500 to 2,000 tokens made of the same census sentences; no header, loss on all tokens
--rows   your own file, in any shape that strop reads
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from random_checkpoint import TOKENIZER
from strop.data.dataset import open_or_build
from strop.data.sources import open_sources
from strop.data.store import SampleStore, StoreSettings
from strop.data.template import load_template
from strop.microbatch.order import Order
from strop.recipe import DataSection

MAX_SEQ_LENGTH = 2048
WORKLOADS = ("census", "long")
CENSUS = Path(__file__).parents[1] / "examples" / "census"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=WORKLOADS, default="census", help="generated rows (default: census)")
    parser.add_argument("--rows", type=Path, help="a JSONL file of rows instead")


def open_workload(name: str, rows: Path | None = None) -> SampleStore:
    """The samples of a named workload, or of a file."""
    if rows is None:
        rows = {"census": census_rows, "long": long_rows}[name]()
    data = DataSection(train_file=str(rows))
    sources = open_sources(data, data.train_file)
    formats = [source.shape.format for source in sources]
    template = load_template(TOKENIZER, "alpaca" if formats == ["alpaca"] else "auto", formats)
    return open_or_build(sources, template, StoreSettings(MAX_SEQ_LENGTH))


def stream(store: SampleStore, count: int, seed: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """The first samples in strop's order, as input_ids and labels, which are -100 where nothing is learned."""
    for index in Order(len(store), count, 1.0, max_steps=10**6, seed=seed).samples(0):
        sample = store[int(index)]
        ids = sample.input_ids.tolist()
        yield ids, [token if learned else -100 for token, learned in zip(ids, sample.learned, strict=True)]


def census_rows(rows: int = 20_000) -> Path:
    path = _folder("census") / "train.jsonl"
    if not path.exists():
        sys.path.insert(0, str(CENSUS))
        from build import main as build

        with contextlib.redirect_stdout(io.StringIO()):
            build(["--out", str(path.parent), "--rows", str(rows), "--validation-rows", "200", "--seed", "1"])
    return path


def long_rows(rows: int = 2_000, shortest: int = 500, longest: int = 1_920) -> Path:
    """Census answers and questions joined up to a length drawn evenly from the range, plus part of a sentence."""
    path = _folder("long") / "train.jsonl"
    if not path.exists():
        from strop.data.tokenizer import load_tokenizer

        census = [json.loads(line) for line in census_rows().read_text("utf-8").splitlines()]
        sentences = [f"{row['output']} {row['instruction']}".replace("'", "") for row in census]
        lengths = [len(ids) for ids in load_tokenizer(TOKENIZER)(sentences, add_special_tokens=False)["input_ids"]]
        rng = random.Random("long")
        documents = []
        for _ in range(rows):
            left, parts = rng.randint(shortest, longest), []
            while left > 0:
                at = rng.randrange(len(sentences))
                parts.append(sentences[at])
                left -= lengths[at]
            documents.append(json.dumps({"text": " ".join(parts)}, ensure_ascii=False))
        path.write_text("\n".join(documents) + "\n", "utf-8")
    return path


def _folder(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / "strop-workloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
