"""`report.html` from disk in Chromium without a network: what a person sees, and that nothing leaves the page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import console_errors, find_all, texts
from PIL import Image
from report_runs import HOSTILE, write_run
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from cifar_resnets.reports.page import write_report

pytestmark = [pytest.mark.process, pytest.mark.browser]
LONG = "a_very_" + "long_" * 30 + "name"
# the page would be wider than the window; boxes that scroll by themselves may be
OVERFLOW = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')]
  .filter((each) => !each.closest('.scroll, svg') && each.getBoundingClientRect().right > width + 0.5)
  .map((each) => each.outerHTML.slice(0, 200));
"""
CUT = """
return [...document.querySelectorAll('svg.chart')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  const right = svg.closest('.scroll') ? box.right : document.documentElement.clientWidth;
  return [...svg.querySelectorAll('text')].filter((text) => {
    const inner = text.getBoundingClientRect();
    return inner.left < 0 || inner.right > right || inner.bottom > box.bottom + 1;
  }).map((text) => text.textContent);
});
"""
# font sizes in pixels of the screen
SIZES = """
return [...document.querySelectorAll('svg.chart text')].map((text) => {
  const { a, b } = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
});
"""


def offline() -> AbstractContextManager[Chrome]:
    """A browser that finds no address, and that notes every request."""
    return browser.chromium("--host-resolver-rules=MAP * ~NOTFOUND", performance="ALL")


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with offline() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("<i>runs")
    folders = [
        write_run(root / name, [*HOSTILE, LONG], 300, 20, seed, 1 + seed, paths=[*HOSTILE[1:3], f"{LONG}.png"])
        for seed, name in enumerate(("one<script>alert(3)<script>", "two"))
    ]
    many = write_run(root / "many", [f"class {n}" for n in range(100)], 1000, 20)
    bare = root / "bare"
    bare.mkdir()
    (bare / "run.json").write_text("{}")
    (bare / "config.yaml").write_text("name: x\n")
    pages = {"one": folders[:1], "several": folders, "many": [many], "bare": [bare]}
    for name, shown in pages.items():
        write_report(shown, root / f"{name}.html")
    return {name: root / f"{name}.html" for name in pages}


def show(driver: Chrome, path: Path, width: int = 1280, height: int = 900, **media: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    driver.get_log("performance")  # forgets what came before
    driver.get(path.as_uri())


def picture(driver: Chrome) -> Any:
    screenshot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(screenshot))).convert("RGB")).astype(int)


def requests(driver: Chrome) -> list[str]:
    """The addresses that the page asked for since it was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent]


@pytest.mark.parametrize("name", ["one", "several", "many", "bare"])
def test_nothing_leaves_and_nothing_fails(driver: Chrome, reports: dict[str, Path], name: str) -> None:
    show(driver, reports[name])
    asked = requests(driver)
    assert asked[0] == reports[name].as_uri()  # so requests are noted at all
    assert [address for address in asked[1:] if not address.startswith("data:")] == []
    assert console_errors(driver) == []
    sizes = driver.execute_script("return [...document.images].map((image) => [image.complete, image.naturalWidth])")
    assert all(complete and width > 0 for complete, width in sizes)
    assert bool(sizes) == (name != "bare")
    assert driver.execute_script("return document.scripts.length") == 0


def test_requests_would_be_noticed(driver: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<link rel="stylesheet" href="http://example.org/a.css"><img src="http://example.org/b.png">')
    show(driver, page)
    assert {address for address in requests(driver) if address.startswith("http")} == {
        "http://example.org/a.css",
        "http://example.org/b.png",
    }
    assert console_errors(driver)


@pytest.mark.parametrize(("name", "place"), [("one", ".samples"), ("several", ".thumbs")])
def test_a_click_on_a_file_shows_its_whole_path(
    driver: Chrome, reports: dict[str, Path], name: str, place: str
) -> None:
    show(driver, reports[name], width=390)
    for summary in driver.find_elements(By.CSS_SELECTOR, f"{place} .file summary")[:8]:
        path = summary.find_element(By.XPATH, "./following-sibling::bdi")
        assert not path.is_displayed()
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
        summary.click()
        assert path.is_displayed()
        assert re.match(r"\d+/(a_very_|.*alert|<)", path.text)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("name", ["one", "several"])
def test_hostile_names_are_text(driver: Chrome, reports: dict[str, Path], name: str) -> None:
    show(driver, reports[name])
    body = driver.find_element(By.TAG_NAME, "body").text  # raises if an alert were open
    for hostile in HOSTILE:
        assert hostile in body
    assert "<script>alert(3)" in driver.title
    assert driver.execute_script("return getComputedStyle(document.body).display") == "block"


def test_the_first_screen_shows_name_accuracy_and_curves(driver: Chrome, reports: dict[str, Path]) -> None:
    show(driver, reports["one"])
    shown = [find_all(driver, selector)[0] for selector in ("h1", ".accuracy strong")]
    shown += find_all(driver, ".panels svg.chart")[:3]
    assert len(shown) == 5
    for element in shown:
        assert element.rect["height"] > 20
        assert element.rect["y"] + element.rect["height"] < 900
    accuracy = shown[1].text
    assert re.fullmatch(r"\d\d\.\d\d\s%", accuracy)
    assert accuracy.split()[0] in texts(driver, "tr.all")[0]
    curves = picture(driver)[300:600]
    assert len(np.unique(curves.reshape(-1, 3), axis=0)) > 50  # not blank


@pytest.mark.parametrize("name", ["one", "several", "many", "bare"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_scrolls_sideways(driver: Chrome, reports: dict[str, Path], name: str, width: int) -> None:
    show(driver, reports[name], width)
    assert driver.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    assert driver.execute_script(OVERFLOW) == []
    assert driver.execute_script(CUT) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_headings_of_a_table_keep_to_their_columns(driver: Chrome, tmp_path: Path, width: int) -> None:
    folders = [write_run(tmp_path / f"{name}_run_with_a_rather_long_name/version_0") for name in "ab"]
    write_report(folders, tmp_path / "report.html")
    show(driver, tmp_path / "report.html", width)
    cells = "[...document.querySelectorAll('th, td')]"
    wide = f"return {cells}.filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.innerText)"
    assert driver.execute_script(wide) == []


def test_text_can_be_read_on_a_phone(driver: Chrome, reports: dict[str, Path]) -> None:
    show(driver, reports["one"], 360)
    sizes = driver.execute_script(SIZES)
    assert min(sizes) > 8
    assert max(sizes) < 16
    images = driver.execute_script("return [...document.images].map((image) => image.getBoundingClientRect().width)")
    assert min(images) > 60


def test_bars_are_as_long_as_their_numbers(driver: Chrome, reports: dict[str, Path]) -> None:
    show(driver, reports["one"])
    share = "return [...document.querySelectorAll('.proportion')].map((e) => getComputedStyle(e).backgroundSize)"
    filled = [float(re.findall(r"([\d.]+)% 100%", size)[0]) for size in driver.execute_script(share)]
    accuracies = [float(text.split()[0]) for text in texts(driver, "#classes tbody td:nth-child(2)")]
    assert filled == pytest.approx(accuracies, abs=0.1)
    show(driver, reports["several"])
    width = (
        "return [...document.querySelectorAll('.change')].map((e) => parseFloat(getComputedStyle(e, '::after').width))"
    )
    changes = [abs(float(text.replace("−", "-"))) for text in texts(driver, "tbody td:nth-child(4)") if text[0] in "+−"]
    widths = driver.execute_script(width)
    assert max(widths) == pytest.approx(60, abs=0.1)  # half of a bar
    assert widths == pytest.approx([60 * change / max(changes) for change in changes], abs=0.5)


def test_dark_and_light(driver: Chrome, reports: dict[str, Path]) -> None:
    means = {}
    for scheme in ("light", "dark"):
        show(driver, reports["one"], prefers_color_scheme=scheme)
        image = picture(driver)
        means[scheme] = image.mean()
        corner = image[5, 5].mean()
        # curves, names and figures stand out from the ground
        assert np.abs(image - corner).max() > 150
    assert means["light"] > 200
    assert means["dark"] < 60


def test_it_prints_with_everything_unfolded(driver: Chrome, reports: dict[str, Path]) -> None:
    show(driver, reports["one"], prefers_color_scheme="dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = driver.execute_script("return [...document.querySelectorAll('details pre')].map((e) => e.offsetHeight)")
    assert len(heights) == 2
    assert min(heights) > 20
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    document = base64.b64decode(printed["data"])
    assert document.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", document)) >= 3
    wide = (
        "return [...document.querySelectorAll('.scroll')].every((each) => getComputedStyle(each).overflowX != 'auto')"
    )
    assert driver.execute_script(wide)
