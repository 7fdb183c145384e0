"""One line of JSON per measurement, and a table of them; the same for strop and for other trainers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = {  # heading: (key, format)
    "workload": ("workload", "{}"),
    "system": ("system", "{}"),
    "setting": ("setting", "{}"),
    "steps/s": ("steps_per_s", "{:.2f}"),
    "samples/s": ("samples_per_s", "{:,.1f}"),
    "median": ("median_samples_per_s", "{:,.1f}"),
    "tok/s": ("tokens_per_s", "{:,.0f}"),
    "executed tok/s": ("executed_tokens_per_s", "{:,.0f}"),
    "of bf16": ("of_bf16", "{:.1%}"),
    "of FP8": ("of_fp8", "{:.1%}"),
    "peak GiB": ("peak_gib", "{:.1f}"),
    "allocated": ("peak_allocated_gib", "{:.2f}"),
    "loss first": ("loss_first", "{:.3f}"),
    "last": ("loss_last", "{:.3f}"),
    "gradient norm": ("grad_norm_last", "{:.2f}"),
}


def append(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def table(results: Iterable[dict[str, Any]]) -> str:
    """Fastest first within a workload; failures come last, with their reason."""
    ordered = sorted(results, key=lambda r: (r["workload"], -r.get("samples_per_s", -1.0)))
    lines = [list(COLUMNS)]
    for result in ordered:
        cells = [form.format(result[key]) if key in result else "" for key, form in COLUMNS.values()]
        if "error" in result:
            cells[3] = result["error"].strip().splitlines()[-1][:100]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines if not (i == 3 and len(line[i]) > 20)) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
