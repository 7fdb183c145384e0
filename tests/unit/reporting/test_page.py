import base64
import hashlib
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostile_texts import HOSTILE
from run_folders import answer, records, write_run
from strop import Run, report
from strop.commands.report import keep_report
from strop.errors import RecipeError
from strop.evaluation.result import Interval
from strop.reporting.charts import gpu_share
from strop.reporting.facts import plan_rows
from strop.reporting.page import ASSETS, render, script_json
from strop.reporting.read import read_run
from strop.reporting.text import both_ends
from strop.reporting.verdict import glance


def html_of(*folders: Path, **options: Any) -> str:
    return render([read_run(folder, folder.name) for folder in folders], **options).html.decode()


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_vendored_library_is_what_was_published() -> None:
    record = json.loads((ASSETS / "uPlot.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest
    assert f"v{record['version']}" in (ASSETS / "uPlot.iife.min.js").read_text()[:100]


def test_the_policy_names_exactly_the_page_s_scripts_and_styles(tmp_path: Path) -> None:
    html = html_of(write_run(tmp_path / "a"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    for element, count in (("script", 2), ("style", 2)):
        bodies = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        assert len(bodies) == count
        for body in bodies:
            assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    for forbidden in ("connect-src", "unsafe", "http:", "https:", "*"):
        assert forbidden not in policy[1]
    assert not re.search(r"""\s(on\w+|style)=["']""", html.split("<body>")[1].split("<script")[0])


def test_only_the_served_page_may_connect_and_only_home(tmp_path: Path) -> None:
    run = [read_run(write_run(tmp_path / "a"), "a")]
    assert "connect-src 'self';" in render(run, live=True).policy
    assert "connect-src" not in render(run).policy


def test_script_json_cannot_leave_its_element() -> None:
    for text in HOSTILE:
        written = str(script_json([text]))
        assert not set("<>&\u2028\u2029") & set(written)
        assert json.loads(written) == [text]
    with pytest.raises(ValueError, match="JSON"):
        script_json(math.nan)


def test_markup_in_a_run_is_text(tmp_path: Path) -> None:
    html = html_of(write_run(tmp_path / "a", texts=["<b>bold</b>"]))
    assert "<b>bold" not in html
    assert html.count("&lt;b&gt;bold") > 30


def test_invisible_characters_show(tmp_path: Path) -> None:
    html = html_of(write_run(tmp_path / "a", texts=["x\u202ey\x00z\ud800"]))
    assert "x⟨U+202E⟩y⟨U+0000⟩z?" in html


def test_numbers_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a"), "a")
    seen = glance(run)
    assert (seen.headline, seen.losses, seen.exact) == ("It learned", (1.5, 0.5), (0.25, 0.75))
    assert (seen.seconds, seen.cost, seen.step) == (60.0, 0.3, 30)
    assert seen.next_commands == [f"strop chat {tmp_path / 'a'}"]
    # 800 tokens and 200 learned ones at 1 ms each, in 1000 / 500 seconds
    assert gpu_share(run).values.tolist() == pytest.approx([50.0] * 30)


@pytest.mark.parametrize(
    ("low", "high", "headline"), [(-2, -1, "It learned"), (1, 2, "It got worse"), (-1, 1, "No clear difference")]
)
def test_the_verdict_is_the_interval_s(tmp_path: Path, low: float, high: float, headline: str) -> None:
    run = read_run(write_run(tmp_path / "a"), "a")
    assert run.evaluation is not None
    run.evaluation = replace(run.evaluation, difference={"nll": Interval(0.0, low, high, 4)})
    assert glance(run).headline == headline


@pytest.mark.parametrize(
    ("exact", "numeric", "change", "f1", "headline"),
    [
        (0.0, None, 0.0, 0.0, "The loss fell, but no answer is right"),
        (0.0, 0.0, 0.0, 0.0, "The loss fell, but no answer is right"),
        (0.0, 0.5, 0.0, 0.0, "It learned"),
        (0.5, None, 0.5, 0.5, "It learned"),
        (0.0, None, 0.0, 0.5, "Closer to the references, but no answer is exact"),
        (0.2, None, -0.5, 0.0, "The loss fell, but fewer answers are right"),
        (None, None, None, None, "It learned"),
    ],
)
def test_a_loss_that_falls_over_wrong_answers_has_not_learned_them(
    tmp_path: Path,
    exact: float | None,
    numeric: float | None,
    change: float | None,
    f1: float | None,
    headline: str,
) -> None:
    def near(value: float | None) -> Interval | None:
        return None if value is None else Interval(value, value - 0.1, value + 0.1, 4)

    run = read_run(write_run(tmp_path / "a"), "a")
    assert run.evaluation is not None
    tuned = {"nll": near(0.5), "exact_match": near(exact), "numeric_match": near(numeric)}
    difference = {"nll": near(-1.0), "exact_match": near(change), "token_f1": near(f1)}
    run.evaluation = replace(run.evaluation, tuned=tuned, difference=difference)
    assert glance(run).headline == headline


@pytest.mark.parametrize(
    ("evals", "adapter_step", "losses", "headline"),
    [
        ([(0, 1.5), (15, 0.9), (30, 0.8)], None, (1.5, 0.8), "The held-out loss fell"),
        ([(0, 0.5), (15, 0.9), (30, 0.8)], 30, (0.5, 0.8), "The held-out loss rose"),
        (
            [(0, 1.5), (15, 0.7), (30, 1.8)],
            15,
            (1.5, 0.7),
            "The held-out loss fell",
        ),  # the best weights are the adapter
        ([(15, 0.9), (30, 0.8)], 30, (None, 0.8), "Finished"),  # step 15 is not the base
    ],
)
def test_without_an_evaluation_only_the_loss_is_spoken_of(
    tmp_path: Path, evals: list[tuple[int, float]], adapter_step: int | None, losses: Any, headline: str
) -> None:
    folder = write_run(tmp_path / "a", adapter_step=adapter_step)
    (folder / "evaluation.json").unlink()
    lines = [json.dumps({"kind": "eval", "step": step, "eval_loss": loss}) for step, loss in evals]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    seen = glance(read_run(folder, "a"))
    assert (seen.losses, seen.headline) == (losses, headline)


def test_a_plan_has_no_share_of_a_run_of_seconds(tmp_path: Path) -> None:
    def offs(seconds: float) -> list[str]:
        outcome = {
            "training_seconds": {"predicted": 20.0, "actual": seconds, "off": 8.24},
            "tokens_per_second": {"predicted": 450.0, "actual": 45.0, "off": 9.0},
        }
        run = read_run(write_run(tmp_path / str(seconds), outcome=outcome), "a")
        return [row["off"] for row in plan_rows(run, glance(run))][:2]

    assert offs(3.0) == ["", ""]
    assert offs(60.0) == ["+824%", "+900%"]


def test_an_answer_that_is_cut_keeps_its_end() -> None:
    text = "x" * 500 + " so the result is 1,670.5"
    assert both_ends(text, 60).endswith("the result is 1,670.5")
    assert "(465 more characters)" in both_ends(text, 60)
    assert both_ends("short", 60) == "short"


def test_an_evaluation_of_the_earlier_form_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    old = {"base": {"nll": 1.0}, "tuned": {"nll": 0.5}, "examples": [{"base": "x", "tuned": "y"}]}
    (folder / "evaluation.json").write_text(json.dumps(old))
    run = read_run(folder, "a")
    assert run.evaluation is None
    assert any("earlier strop" in note for note in run.notes)
    assert "Base beside tuned" not in html_of(folder)


DAMAGE = (b"", b"\x00\xff", b"[]", b"null", b'{"a"', b"{}", b"1e999", b"[" * 100_000, b'{"data":[],"plan":7,"notes":3}')


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "metrics.jsonl", "evaluation.json", "samples.jsonl"])
def test_a_file_that_is_missing_or_damaged_stops_nothing(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a")
    for damage in DAMAGE:
        (folder / name).write_bytes(damage)
        assert "</html>" in html_of(folder), damage[:20]
    (folder / name).unlink()
    assert "</html>" in html_of(folder)


@pytest.mark.parametrize("junk", [None, [], {}, "x", 1e400, -1, [[]], {"x": {}}, True])
def test_values_of_any_type_stop_nothing(tmp_path: Path, junk: object) -> None:
    folder = write_run(tmp_path / "a")
    for name in ("run.json", "evaluation.json"):
        whole = json.loads((folder / name).read_text())
        for key in whole:
            (folder / name).write_text(json.dumps(whole | {key: junk}))
            assert "</html>" in html_of(folder), key
        (folder / name).write_text(json.dumps(whole))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: a\n")
    html = html_of(folder)
    assert data_of(html)["charts"] == []
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN}\n{"kind": "tr')
    assert "Of 1 losses 1 are not a number" in html_of(folder)


def test_runs_of_different_lengths_overlay_and_differ(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, steps=steps) for name, steps in (("a", 1), ("b", 400))]
    (folders[1] / "recipe.yaml").write_text("model: {r: 8}\n")
    html = html_of(*folders)
    loss = data_of(html)["charts"][0]
    assert [(line["run"], len(line["raw"][0]), "mean" in line) for line in loss["lines"]] == [
        (0, 1, False),
        (0, 1, False),
        (1, 400, True),
        (1, 3, False),
    ]
    assert "the mean of the 9 steps around it" in loss["note"]
    assert "Where the recipes differ" in html
    assert "Where the recipes differ" not in html_of(folders[0])


def test_many_and_long_answers_are_cut_and_said_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", questions=1000)
    assert "The first 200 of 1000 answers" in html_of(folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    long = {"row": "a:1", "group": None, "question": "<" * 50_000, "reference": ""}
    long |= {"base": answer("&" * 50_000, True), "tuned": answer("'" * 50_000, False)}
    evaluation["examples"] = [long] * 300
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    html = html_of(folder)
    assert "47,000 more characters" in html
    assert 1 <= html.count('class="example"') < 200
    assert len(html) < 5_000_000


@pytest.mark.slow
def test_a_million_steps_make_a_small_page_in_seconds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", steps=1)
    template = json.dumps(next(iter(records(1)))).replace('"step": 1', '"step": %d')
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(f"{template % step}\n" for step in range(1, 1_000_001))
    began = time.process_time()  # the processor's seconds, however many others want it
    page = render([read_run(folder, "a")])
    assert time.process_time() - began < 30  # 6 s where it was written
    assert len(page.html) < 1_000_000


def test_report_writes_over_its_own_page_and_no_other_file(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "a"))
    assert report([run]) == report([run]) == tmp_path / "a" / "report.html"
    (tmp_path / "thesis.html").write_text("years of work")
    with pytest.raises(RecipeError, match="not a report by strop"):
        report([run], output=tmp_path / "thesis.html")
    assert (tmp_path / "thesis.html").read_text() == "years of work"
    with pytest.raises(RecipeError, match="not a run folder"):
        report([Run(tmp_path)])
    with pytest.raises(RecipeError, match="at most 12"):
        report([run] * 13)


def test_a_page_that_cannot_be_written_is_one_note(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "a"))
    (tmp_path / "a" / "report.html").mkdir()
    notes: list[str] = []
    keep_report(run, notes.append)
    assert len(notes) == 1
    assert "report.html is not written" in notes[0]
