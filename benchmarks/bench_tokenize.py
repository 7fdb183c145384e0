"""Rows per second from JSONL to a token store, and from the store to its audit.

    STROP_CACHE=$(mktemp -d) PYTHONPATH=src python benchmarks/bench_tokenize.py TOKENIZER_FOLDER [ROWS]

The rows are different questions of about 150 tokens under the chat template, in one file.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from strop.data.audit import audit
from strop.data.dataset import open_or_build
from strop.data.sources import open_sources
from strop.data.store import StoreSettings
from strop.data.template import load_template
from strop.recipe import DataSection

SENTENCE = "According to the census of {} the district of Number {} had {} inhabitants in {} households. "


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_rows):
            facts = "".join(SENTENCE.format(1900 + (i + k) % 120, i, i * 37 + k, i * 11) for k in range(3))
            row = {
                "instruction": f"{facts}What was the population in {1900 + i % 120}?",
                "output": str(i * 37),
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    num_rows = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    template = load_template(Path(sys.argv[1]), "chat", ["alpaca"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write_rows(path, num_rows)
        data = DataSection(train_file=str(path))
        sources = open_sources(data, data.train_file)
        for label in ("tokenise", "from cache"):
            start = time.perf_counter()
            store = open_or_build(sources, template, StoreSettings(max_seq_length=2048))
            seconds = time.perf_counter() - start
            rates = f"{num_rows / seconds:,.0f} rows/s, {store.num_tokens / seconds:,.0f} tokens/s"
            print(f"{label}: {seconds:.2f} s, {rates}")
        start = time.perf_counter()
        audit(store, template)
        print(f"audit: {time.perf_counter() - start:.2f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{num_rows:,} rows of {store.num_tokens / num_rows:.0f} tokens; peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
