"""Runs as HTML: one file with its style, its script and its data inside.

Three things keep foreign text from becoming code, each enough by itself: every text goes through Jinja's autoescaping
or, as chart data, through `script_json`; scripts read data only as JSON and write it only as text; and the page's
Content-Security-Policy runs the two scripts whose hashes it names, loads nothing, and connects to nowhere.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from strop.reporting import facts, scores
from strop.reporting.charts import chart_data
from strop.reporting.read import RunFiles
from strop.reporting.text import shown
from strop.reporting.verdict import Glance, glance

ASSETS = Path(__file__).with_name("assets")
GENERATOR = "strop report"
"""What the page calls its maker, by which `api.report` knows that it may write over a file."""

MOST_RUNS = 12


@dataclass(frozen=True)
class Page:
    """A page and the policy that it has to be served with.

    Attributes:
        html: UTF-8.
        policy: The value of the Content-Security-Policy header.
    """

    html: bytes
    policy: str


def render(runs: Sequence[RunFiles], *, live: bool = False) -> Page:
    """The page of some runs.

    Args:
        runs: As `read_run` gives them, the first one first in every list.
        live: The page fetches itself again from where it came; only then may it connect, and only there.
    """
    scripts = [_asset("uPlot.iife.min.js"), _asset("report.js")]
    styles = [_asset("uPlot.min.css"), _asset("report.css")]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            *(("connect-src 'self'",) if live else ()),
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    html = (
        _environment()
        .get_template("report.html")
        .render(
            runs=[_view(run, index, len(runs)) for index, run in enumerate(runs)],
            differences=facts.differences(runs),
            charts=chart_data(runs),
            policy=Markup(policy),
            scripts=[Markup(text) for text in scripts],
            styles=[Markup(text) for text in styles],
            generator=GENERATOR,
            live=live,
        )
    )
    return Page(html.encode("utf-8"), policy)


def script_json(data: Any) -> Markup:
    """JSON that ends no script element and begins no comment, whatever it holds."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _view(run: RunFiles, index: int, share: int) -> dict[str, Any]:
    seen: Glance = glance(run)
    return {
        "index": index,
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "glance": seen,
        "plan": facts.plan_rows(run, seen),
        "data": facts.data_rows(run),
        "recipe": facts.recipe_sections(run.recipe),
        "environment": facts.environment_rows(run),
        "checkpoints": run.checkpoints[-20:],
        "adapter": str(run.path / "adapter") if (run.path / "adapter" / "adapter_config.json").exists() else None,
        "told": [line[:1000] for line in run.manifest.notes[:100]],
        "notes": [note[:1000] for note in run.notes[:100]],
        "scores": scores.score_rows(run.evaluation),
        "groups": scores.group_rows(run.evaluation),
        "examples": scores.examples(run.evaluation, share),
        "sampled": scores.sampled(run.samples, share),
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["script_json"] = script_json
    return environment


def _finalize(value: Any) -> Any:
    """Every text that the template prints, before it is escaped."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"
