"""TensorBoard in a browser, on the logs of real runs: each tab shows what it should."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import Chrome, chromium, console_errors, find_all, num_colours, tensorboard, texts, wait_for
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.remote.webelement import WebElement
from support import read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.__main__ import main

pytestmark = [pytest.mark.process, pytest.mark.browser]

ROOT = Path(__file__).parents[1]
FIT = [
    *("fit", "-c", str(ROOT / "configs/recipes/quickstart.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml")),
    *("--model.network_args", "{depths: [1, 1], widths: [8, 16], stem_width: 8}", "--data.num_train", "200"),
    *("--trainer.max_epochs", "2"),
]
RATES = {"quickstart/version_0": 0.1, "quickstart/version_1": 0.02}
FIGURES = ["calibration", "class_accuracy", "matrix", "pairs", "precision_recall"]
PICTURES = {  # by section, what `Confusion` and `Misclassified` show
    "val_confusion": FIGURES,
    "test_confusion": FIGURES,
    "val_misclassified": ["most_confident", "same_images"],
    "test_misclassified": ["most_confident"],
}


@dataclass(frozen=True)
class Dashboard:
    """A browser that looks at TensorBoard, and the logs that it shows."""

    driver: Chrome
    address: str
    logs: Path

    def open(self, tab: str) -> None:
        """Opens a tab anew; TensorBoard takes a change of the part after # alone for the same page."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}#{tab}")

    def wait(self, what: str, condition: Any) -> Any:
        """What a condition returns once it holds."""
        return wait_for(self.driver, condition, what)

    def all(self, selector: str) -> list[WebElement]:
        """The elements that a selector fits."""
        return find_all(self.driver, selector)

    def texts(self, selector: str) -> list[str]:
        """What is written in them."""
        return texts(self.driver, selector)


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def opened(driver: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder):
        for rate in RATES.values():
            main([*FIT, "--model.lr", str(rate)])
    logs = folder / "logs"
    with tensorboard(logs) as address:
        dashboard = Dashboard(driver, address, logs)
        dashboard.wait("all runs to be read", lambda: is_read(address))
        yield dashboard


def is_read(address: str) -> bool:
    """Whether the server has come to the end of each run: the page does not load by itself what comes later."""

    def tags(plugin: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{address}data/plugin/{plugin}/tags") as answer:
            return json.load(answer)

    scalars, images = tags("scalars"), tags("images")
    newest = {"test_confusion/precision_recall", "test_misclassified/most_confident"}
    return all("test/acc" in scalars.get(run, {}) and newest <= images.get(run, {}).keys() for run in RATES)


@pytest.fixture
def dashboard(opened: Dashboard) -> Iterator[Dashboard]:
    console_errors(opened.driver)
    yield opened
    assert console_errors(opened.driver) == []


def best_accuracy(run: Path) -> float:
    """The highest validation accuracy, from the figures of each epoch."""
    with (run / "metrics.csv").open() as file:
        return max(float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"])


def test_time_series(dashboard: Dashboard) -> None:
    dashboard.open("timeseries")
    cards = dashboard.wait("cards", lambda: dashboard.all("card-view"))
    dashboard.wait("a chart", lambda: num_colours(cards[0]) > 20)
    groups = {"lr", "momentum", "test", "test_class_acc", "time", "train", "val", "val_class_acc", *PICTURES}
    dashboard.wait("all groups", lambda: groups <= set(dashboard.texts(".group-title")))
    runs = dashboard.texts("tb-data-table-content-cell.table-column-run")
    assert all(any(name in text for text in runs) for name in RATES)


@pytest.mark.parametrize("tag", ["val/acc_best", "train/loss", "val_class_acc/3", "time/images_per_second"])
def test_scalars(dashboard: Dashboard, tag: str) -> None:
    dashboard.open(f"scalars&tagFilter=^{tag}$")
    card = dashboard.wait("the card", lambda: next(iter(of_tag(dashboard.all("tf-scalar-card"), tag)), None))
    dashboard.wait("the curves", lambda: num_colours(card) > 20)


def of_tag(cards: list[WebElement], tag: str) -> list[WebElement]:
    """The cards of a tag."""
    return [card for card in cards if card.get_attribute("tag") == tag]


def test_custom_scalars(dashboard: Dashboard) -> None:
    dashboard.open("custom_scalars")
    cards = dashboard.wait(
        "all charts", lambda: len(found := dashboard.all("tf-custom-scalar-multi-line-chart-card")) == 19 and found
    )
    titles = ["loss", "accuracy", "balanced accuracy", "macro F1", "learning rate", "momentum"]
    titles += ["images per second", "seconds per epoch", "all classes"]
    assert [card.text.splitlines()[0] for card in cards] == [*titles, *map(str, range(10))]

    def matches() -> set[str] | None:
        found = {text.split()[-2] + " " + text.split()[-1].strip("()") for text in dashboard.texts(".match-list-entry")}
        return found if len(found) >= len(expected) else None

    loss_to_speed = ("loss", "acc"), ("lr", "momentum", "time/images_per_second", "time/epoch_seconds")
    tags = {f"{stage}/{figure}" for stage in ("train", "val") for figure in loss_to_speed[0]} | {"test/acc"}
    tags |= {f"{stage}/{figure}" for stage in ("val", "test") for figure in ("acc_balanced", "f1_macro")}
    tags |= {*loss_to_speed[1], *(f"{stage}_class_acc/{digit}" for stage in ("train", "val") for digit in range(10))}
    expected = {f"{tag} {run}" for tag in tags for run in RATES}
    assert dashboard.wait("all curves", matches) == expected
    for card in cards:
        dashboard.wait("curves", lambda card=card: num_colours(card) > 20)


@pytest.mark.parametrize("section", PICTURES)
def test_images(dashboard: Dashboard, section: str) -> None:
    dashboard.open(f"images&tagFilter=^{section}/")  # what it finds comes first, and is open

    def shown() -> dict[tuple[str, str], WebElement]:
        cards = dashboard.all("tf-image-loader")
        return {(card.get_attribute("run"), card.get_attribute("tag")): card for card in reversed(cards)}

    expected = {(run, f"{section}/{name}") for run in RATES for name in PICTURES[section]}
    dashboard.wait("all cards", lambda: expected <= shown().keys())
    found = {key: card for key, card in shown().items() if key[1].startswith(section)}
    assert found.keys() == expected
    for (run, tag), card in found.items():
        [picture] = dashboard.wait("the picture", lambda card=card: pictures_of(dashboard, card))
        newest = logged(dashboard.logs / run, tag)[-1]
        size = Image.open(io.BytesIO(newest.encoded_image_string)).size
        assert (picture.get_property("naturalWidth"), picture.get_property("naturalHeight")) == size
        assert picture.size["width"] == 350  # what galleries and figures are laid out for
        assert num_colours(picture) > 20
        assert f"step {newest.step}" in " ".join(card.text.split())


def logged(run: Path, tag: str) -> list[Any]:
    """The pictures of a tag in the event files, by step."""
    return EventAccumulator(str(run), size_guidance={"images": 0}).Reload().Images(tag)


def pictures_of(dashboard: Dashboard, loader: WebElement) -> list[WebElement]:
    """The loaded picture of a card; none is loaded before it is on the screen."""
    dashboard.driver.execute_script("arguments[0].scrollIntoView()", loader)
    found = dashboard.driver.execute_script("return [...arguments[0].shadowRoot.querySelectorAll('img')]", loader)
    return [image for image in found if image.get_property("naturalWidth") > 0]


def test_graph(dashboard: Dashboard) -> None:
    dashboard.open("graphs")

    def names() -> list[str]:
        return [str(each.get_attribute("data-name")) for each in dashboard.all("svg g.node")]

    layers = [
        "images",
        "conv1",
        "bn1",
        "act1",
        "layer1",
        "layer2",
        "global_pool",
        "flatten",
        "head_drop",
        "fc",
        "logits",
    ]
    tops = dashboard.wait("the whole network", lambda: len(found := names()) >= len(layers) and found)
    assert tops == layers
    drawn = dashboard.texts("svg g.node title")
    assert all(any(layer in text for text in drawn) for layer in layers)
    [layer] = [each for each in dashboard.all("svg g.node") if each.get_attribute("data-name") == "layer1"]
    dashboard.wait("the layer's colours", lambda: num_colours(layer) > 5)
    places: list[Any] = [None]

    def is_at_rest() -> bool:  # the graph moves until it fits
        places.append(layer.rect)
        return places[-1] == places[-2]

    clicks = [-math.inf]

    def is_open() -> bool:  # a click may miss what still moves; another one too soon would close it again
        if is_at_rest() and time.monotonic() - clicks[-1] > 8 and "layer1/0" not in names():
            ActionChains(dashboard.driver).double_click(layer).perform()
            clicks.append(time.monotonic())
        return "layer1/0" in names()

    dashboard.wait("the block inside of the layer", is_open)


def test_hparams_tab_compares_the_runs(dashboard: Dashboard) -> None:
    dashboard.open("hparams")
    columns = ["lr", "max_epochs", "network", "schedule", "seed"]
    columns += ["val/acc_best", "test/acc", "val/loss", "test/loss", "val/acc"]

    def cells() -> list[str] | None:
        found = dashboard.texts("vaadin-grid-cell-content")
        return found if len(found) >= 2 + len(columns) + len(RATES) * (1 + len(columns)) else None

    found = dashboard.wait("the table", cells)
    assert found[2 : 2 + len(columns)] == columns
    for run, rate in RATES.items():
        start = found.index(run) + 1
        row = dict(zip(columns, found[start : start + len(columns)], strict=True))
        assert float(row["lr"]) == pytest.approx(rate)
        assert row["network"] == "cifar_resnet20"
        report = read_json(dashboard.logs / run / "test.json")
        assert float(row["test/acc"]) == pytest.approx(report["accuracy"], rel=1e-4)
        assert float(row["test/loss"]) == pytest.approx(report["loss"], rel=1e-4)
        assert float(row["val/acc_best"]) == pytest.approx(best_accuracy(dashboard.logs / run), rel=1e-4)
