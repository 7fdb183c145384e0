"""The page in a real browser: it draws, it is quiet, it fetches nothing, and no text of a run ever becomes code."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from browser import chromium, complaints, requests, require_browser
from hostile_texts import HOSTILE
from run_folders import write_run
from strop import Run, report
from strop.commands.report import page_server
from strop.reporting.page import MOST_RUNS, render
from strop.reporting.read import read_run

FOREIGN = "main :is(script, style, link, meta, base, iframe, object, embed, img, svg, math, a, form, video, audio)"
"""Elements that the page's own template has none of."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    require_browser()
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        script = "window.firings = 0; window.fired = () => { window.firings += 1; };"
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        yield driver


def visit(driver: webdriver.Chrome, address: str) -> None:
    requests(driver), complaints(driver)  # what came before is another test's
    driver.get(address)


def text(driver: webdriver.Chrome, selector: str) -> str:
    """What an element shows, found and read at once: a page_server page may replace it in between."""
    return str(driver.execute_script("return document.querySelector(arguments[0]).innerText", selector))


def touch_everything(driver: webdriver.Chrome) -> None:
    """Bring about what event handlers wait for, and time for what loads or fires late."""
    driver.execute_script(
        "for (const each of document.querySelectorAll('details')) each.open = true;"
        "for (const each of document.querySelectorAll('body *')) {"
        "  for (const name of ['focus', 'mouseover', 'pointerenter', 'load', 'error', 'toggle', 'animationstart'])"
        "    each.dispatchEvent(new Event(name));"
        "}"
    )
    driver.execute_async_script("setTimeout(arguments[0], 300)")


def test_a_page_draws_its_charts_quietly_and_fetches_nothing(driver: webdriver.Chrome, tmp_path: Path) -> None:
    page = report(
        [Run(write_run(tmp_path / "a")), Run(write_run(tmp_path / "b", steps=500))], output=tmp_path / "page.html"
    )
    visit(driver, page.as_uri())
    assert len(driver.find_elements(By.CSS_SELECTOR, ".chart canvas")) == 7
    drawn = driver.execute_script(
        "return [...document.querySelectorAll('.chart canvas')].map(canvas =>"
        "  canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean))"
    )
    assert drawn == [True] * 7
    touch_everything(driver)
    assert complaints(driver) == []
    assert requests(driver) == [page.as_uri()]


@pytest.mark.parametrize(("width", "dark"), [(380, False), (380, True), (1280, True)])
def test_nothing_is_wider_than_the_screen(driver: webdriver.Chrome, tmp_path: Path, width: int, dark: bool) -> None:
    page = report([Run(write_run(tmp_path / "a", texts=["word " * 30, "A" * 500]))])
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 800}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        visit(driver, page.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        shade = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", shade)[:3])) < 60) == dark
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_charts_are_drawn_anew_for_paper(driver: webdriver.Chrome, tmp_path: Path) -> None:
    visit(driver, report([Run(write_run(tmp_path / "a"))]).as_uri())
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    wide = driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map(box => [box.clientWidth, box.firstChild.clientWidth])"
    )
    assert len(wide) == 7
    assert all(0 < plot <= box < 680 for box, plot in wide), wide


def test_filters_and_search_choose_the_answers(driver: webdriver.Chrome, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", texts=[f"text {i}" for i in range(200)], questions=8)
    visit(driver, report([Run(run)]).as_uri())

    def visible() -> int:
        examples = driver.find_elements(By.CSS_SELECTOR, ".examples .example")
        return sum(example.is_displayed() for example in examples)

    found = {}
    for kind in ("right", "wrong", "gained", "lost", ""):
        driver.find_element(By.CSS_SELECTOR, f'[data-show="{kind}"]').click()
        found[kind] = visible()
    assert found == {"right": 6, "wrong": 2, "gained": 4, "lost": 0, "": 8}
    search = driver.find_element(By.CSS_SELECTOR, "input[type=search]")
    search.send_keys(driver.find_elements(By.CSS_SELECTOR, ".example .question")[3].text)
    assert visible() == 1
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert visible() == 8


@pytest.mark.slow
def test_every_hostile_text_in_every_field_runs_nothing(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """A run for each text, with nothing else in any field, its name among them; many runs on a page."""
    for first in range(0, len(HOSTILE), MOST_RUNS):
        texts = HOSTILE[first : first + MOST_RUNS]
        folders = [write_run(tmp_path / str(first + i), texts=[text], steps=3) for i, text in enumerate(texts)]
        page = tmp_path / f"{first}.html"
        page.write_bytes(render([read_run(each, text) for each, text in zip(folders, texts, strict=True)]).html)
        assert_it_is_inert(driver, page)
        assert len(driver.find_elements(By.CSS_SELECTOR, "details.run")) == len(texts)


def test_hostile_texts_on_the_page_of_one_run_run_nothing(driver: webdriver.Chrome, tmp_path: Path) -> None:
    for shift, name in enumerate(("<img src=x onerror=fired()>", "a'\"><svg onload=fired()>", "{{ fired() }}")):
        start = shift * len(HOSTILE) // 3
        run = write_run(tmp_path / name, texts=[*HOSTILE[start:], *HOSTILE[:start]], questions=60)
        assert_it_is_inert(driver, report([Run(run)], output=tmp_path / f"page-{shift}.html"))
        assert name in driver.find_element(By.CSS_SELECTOR, ".eyebrow").text


def assert_it_is_inert(driver: webdriver.Chrome, page: Path) -> None:
    visit(driver, page.as_uri())
    touch_everything(driver)
    assert driver.execute_script("return window.firings") == 0
    assert complaints(driver) == []
    assert requests(driver) == [page.as_uri()]
    assert driver.find_elements(By.CSS_SELECTOR, FOREIGN) == []
    assert len(driver.find_elements(By.CSS_SELECTOR, ".chart canvas")) == 7
    assert driver.find_element(By.TAG_NAME, "footer").is_displayed()


def test_the_same_texts_unescaped_do_run(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """The negative control: without escaping and policy the corpus fires and asks for what is not the page's."""
    fired = 0
    for i, text in enumerate(text for text in HOSTILE if "fired()" in text and len(text) < 1000):
        if i % 9 == 0:
            page = tmp_path / f"{i}.html"
            sound = text.encode("utf-8", "replace").decode()
            page.write_text(f'<!DOCTYPE html><meta charset=utf-8><p title="{sound}">{sound}</p>', encoding="utf-8")
            visit(driver, page.as_uri())
            touch_everything(driver)
            fired += driver.execute_script("return window.firings") > 0
    assert fired >= 5


def test_the_policy_alone_stops_markup_that_got_through(driver: webdriver.Chrome, tmp_path: Path) -> None:
    page = report([Run(write_run(tmp_path / "a"))])
    whole = page.read_text(encoding="utf-8")
    through = "<script>fired()</script><img src=https://leak.invalid/x onerror=fired()><svg onload=fired()></svg>"
    page.write_text(whole.replace("</main>", f"{through}</main>"), encoding="utf-8")
    visit(driver, page.as_uri())
    touch_everything(driver)
    assert driver.execute_script("return window.firings") == 0
    assert len(complaints(driver)) >= 3


def test_a_watched_page_follows_its_run_and_keeps_what_the_reader_chose(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "a", questions=40)
    with page_server([Run(folder)]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        visit(driver, server.url)
        assert "Answers while it learned" in text(driver, "main")
        driver.find_element(By.CSS_SELECTOR, '[data-show="gained"]').click()
        driver.execute_script("scrollTo(0, 900)")
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(f'{{"kind": "train", "step": {step}, "loss": 0.01}}\n' for step in range(31, 42))
        (folder / "samples.jsonl").unlink()
        waiting = WebDriverWait(driver, 20)
        waiting.until(lambda _: "41 steps" in text(driver, "header"))
        waiting.until(lambda _: "Answers while it learned" not in text(driver, "main"))
        assert "0.01" in text(driver, ".chart .keys")
        assert driver.find_element(By.CSS_SELECTOR, '[data-show="gained"]').get_attribute("aria-pressed") == "true"
        assert driver.execute_script("return scrollY") == pytest.approx(900, abs=60)
        assert complaints(driver) == []
        assert set(requests(driver)) == {server.url}
        server.shutdown()
    waiting.until(lambda _: "has ended" in text(driver, "footer"))
