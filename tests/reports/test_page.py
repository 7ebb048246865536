"""The page as a parser sees it, and the command as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import HOSTILE, write_run
from support import Result

from cifar_resnets.errors import OutputError
from cifar_resnets.figures.confusion import STRENGTH
from cifar_resnets.figures.style import PALETTE
from cifar_resnets.reports import classes, curves
from cifar_resnets.reports.page import render, write_report
from cifar_resnets.results.run_folder import KNOWN, read_run

pytestmark = pytest.mark.long

ELEMENTS = set(
    "html head meta link title style body header main nav section h1 h2 h3 p a b strong small span div bdi code pre "
    "details summary dl dt dd ul li table caption thead tbody tr th td figure figcaption img br "
    "svg path rect text g defs use clippath".split()
)
LIGHT = """
import sys
from cifar_resnets.__main__ import main
main(["report", *sys.argv[1:]])
heavy = {"torch", "lightning", "timm", "torchvision", "scipy", "sklearn"} & sys.modules.keys()
assert not heavy, heavy
"""


class Page(HTMLParser):
    """Elements, their attributes and the text of a page; that open and closed ones fit each other."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*folders: Path) -> Page:
    return Page(render([read_run(folder, folder.name) for folder in folders]))


def one_line(result: Result, status: int, *words: str) -> None:
    assert (result.status, result.err.count("\n")) == (status, 1), result.err
    assert all(word in result.err for word in words), result.err


# What the page says.


def test_one_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = page(folder)
    run = read_run(folder, "run")
    assert run.evaluation is not None
    assert f"{100 * (run.evaluation.total.accuracy or 0):.2f} %" in found.text
    expected = ["cifar_resnet20", "cifar-resnets fit -c 'my recipe.yaml' --seed_everything 0", "0123456789abcdef"]
    expected += [
        "cifar_resnets/cli/train.py",
        "torch 2.15.0",
        "trained with 0.1",
        "gradcam",
        "layer3",
        "AdaptiveAvgPool2d",
    ]
    expected += ["400 images", "401 images/s", " ".join((folder / "config.yaml").read_text().split())]
    for words in expected:
        assert words in found.text, words
    assert "There is no" not in found.text
    assert len(found.all("img")) == 16
    headings = [name for name, _ in found.elements if name in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_a_run_without_a_range_test_has_no_section_of_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "lr_finder.csv").unlink()
    found = page(folder)
    assert "range test" not in found.text
    assert "#search" not in [a.get("href") for a in found.all("a")]


def test_several_runs(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, num_test=200, seed=n, skill=1 + n) for n, name in enumerate("abc")]
    runs = [read_run(folder, folder.name) for folder in folders]
    found = page(*folders)
    text = found.text
    assert "3 runs side by side" in text
    assert "b beside a" in text
    assert "c beside a" in text
    assert "Holm" in text
    right = [run.predictions.labels == run.predictions.predicted for run in runs if run.predictions]
    expected = [(int((~right[0] & other).sum()), int((right[0] & ~other).sum())) for other in right[1:]]
    shown = re.findall(r"Newly right: (\d+) \d+ of \1 shown.*?as a took them.*?Newly wrong: (\d+)", text)
    assert [(int(more), int(less)) for more, less in shown] == expected
    assert all(more > less > 0 for more, less in expected)
    assert "seed_everything" in text
    assert text.count("Most confused pairs") == 0  # a label, not a text
    assert len([a for a in found.all("div") if a.get("aria-label") == "Most confused pairs"]) == 3
    labels = [a.get("aria-label") or "" for a in found.all("svg")]
    loss = next(label for label in labels if label.startswith("Loss over the epochs"))
    assert all(f"{name} from" in loss and f"{name}, training from" in loss for name in "abc")


def test_runs_on_other_images_say_so(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", num_test=60), write_run(tmp_path / "b", num_test=50)]
    assert "They cannot be compared image by image: they tested 60 and 50 images." in page(*folders).text


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and not drawn, which takes most of the time of a page."""
    for module in (classes, curves):
        monkeypatch.setattr(module, "to_svg", lambda figure, name, label: "<svg></svg>")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [*KNOWN[:6], "layers.csv", "gallery.npz", "mistakes.npz"])
def test_what_is_missing_is_said_and_what_is_damaged_too(tmp_path: Path, name: str) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)]
    for folder in folders:
        (folder / name).write_bytes(b"\x00\x01")
    for found in (page(folders[0]), page(*folders)):
        assert f"{name}" in found.text
        assert "cannot be read" in found.text or "are left out" in found.text or "cut off" in found.text
    for folder in folders:
        (folder / name).unlink()
    missing = page(folders[0])
    page(*folders)
    if name in ("run.json", "config.yaml", "layers.csv", "test.json", "test_predictions.csv"):
        assert f"here is no {name}" in missing.text
    elif name == "metrics.csv":
        assert "There are no curves" in missing.text
    elif name == "gallery.npz":
        assert len(missing.all("img")) > 4  # the mistakes take its place


@pytest.mark.parametrize("name", KNOWN[:6])
def test_a_run_of_one_file_has_a_report(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a")
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / name, tmp_path / "alone")
    page(tmp_path / "alone")
    page(folder, tmp_path / "alone")
    page(tmp_path / "alone", folder)


def test_no_mistake_at_all(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", skill=50.0)
    arrays = dict(np.load(folder / "gallery.npz"))
    assert len(arrays["images"]) == 0
    text = page(folder).text
    assert "No image was classified wrongly." in text
    assert "No image was taken for another class." in text


# What the page never does.


def test_names_paths_and_settings_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / HOSTILE[0].replace("/", ""), HOSTILE, num_test=200)
    other = write_run(tmp_path / "b", HOSTILE, num_test=200, seed=1)
    for path in (folder, other):
        config = (path / "config.yaml").read_text()
        (path / "config.yaml").write_text(config + f"name: '{HOSTILE[0]}'\n? '{HOSTILE[2]}'\n: '{path.name}'\n")
        record = (path / "run.json").read_text().replace("my recipe.yaml", HOSTILE[0])
        (path / "run.json").write_text(record.replace("cli.py", HOSTILE[2]))
        layers = (path / "layers.csv").read_text().replace("conv1", HOSTILE[0])
        (path / "layers.csv").write_text(layers)
    for found in (page(folder), page(folder, other)):
        check_harmless(found)
        for name in HOSTILE:
            assert name in found.text
        assert folder.name in found.text


def test_names_of_files_are_text_and_the_whole_path_is_a_click_away(tmp_path: Path) -> None:
    hostile = [f"x{each.replace('/', '')}\n\u202e.png" for each in HOSTILE] + ["long_" * 30 + "name.png"]
    folders = [write_run(tmp_path / n, num_test=200, seed=s, paths=hostile, num_gallery=20) for s, n in enumerate("ab")]
    for found in (page(folders[0]), page(*folders)):
        check_harmless(found)
        for name in hostile:
            assert f"/{name[:-6]}\\n\\u202e.png" in found.text if "\n" in name else f"/{name}" in found.text
        assert "x<script>alert(1)<script>" in found.text
        assert "long_long_long…long_name.png" in found.text
    assert "#" not in page(folders[0]).text.partition("Mistakes")[2].partition("How to repeat")[0]


def check_harmless(found: Page) -> None:
    """Nothing on the page loads or runs anything."""
    assert {name for name, _ in found.elements} <= ELEMENTS
    for name, attributes in found.elements:
        assert not any(key.startswith("on") or key in ("srcset", "action", "formaction") for key in attributes)
        for key in ("src", "href", "xlink:href"):
            if (value := attributes.get(key)) is not None:
                assert value.startswith(("data:image/png;base64,", "#")) or (name, value) == ("link", "data:,")
        if "style" in attributes:
            assert re.fullmatch(r"([\w-]+: ?[\w .,%#'()-]+(; ?|$))+", attributes["style"] or "")
            assert "url" not in (attributes["style"] or "")
    policy = next(each["content"] for each in found.all("meta") if "http-equiv" in each)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert all(each.get("alt") for each in found.all("img"))
    assert all(each.get("aria-label") for each in found.all("svg") if each.get("role") == "img")


def test_the_style_loads_nothing(tmp_path: Path) -> None:
    style = re.search(r"<style>(.*)</style>", render([read_run(write_run(tmp_path / "a"), "a")]), re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|@font-face|expression|&#", style[1])


def test_anchors_lead_somewhere(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    for found in (page(folders[0]), page(*folders)):
        ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {(each.get("href") or "")[1:] for each in found.all("a")} <= set(ids)
        used = {(each.get("xlink:href") or "")[1:] for each in found.all("use")}
        clipped = {each.get("clip-path") or "url(#)" for _, each in found.elements if "clip-path" in each}
        assert used | {each[5:-1] for each in clipped} <= set(ids)


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(below: str, above: str, alpha: float) -> str:
    """A colour under another one."""
    parts = [(1 - alpha) * int(below[i : i + 2], 16) + alpha * int(above[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_of_both_schemes(scheme: int) -> None:
    css = (Path(__file__).parents[2] / "cifar_resnets/reports/report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([\w-]+): ([^;]+);", block))
    for ground in (colors["bg"], colors["panel"]):
        for text in ("ink", "muted", "link", "rise", "fall", *(f"s{n}" for n in range(8))):
            assert contrast(colors[text], ground) >= 4.5, text
    for kind in ("s0", "s1"):
        cell = mixed(colors["bg"], colors[kind], STRENGTH)
        assert contrast(colors["ink"], cell) >= 4.5, kind
    assert PALETTE.items() <= colors.items() if scheme == 0 else PALETTE.keys() <= colors.keys()


# The file.


def test_the_same_runs_make_the_same_file_of_modest_size(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(100)]
    folder = write_run(tmp_path / "a", names, num_test=2000, num_epochs=200, size=32, num_gallery=16)
    files = [tmp_path / name for name in ("one.html", "two.html")]
    files[0].write_text("earlier")
    os.link(files[0], tmp_path / "link")
    small = write_run(tmp_path / "b")
    for file in files:
        write_report([small], file)
    assert (tmp_path / "link").read_text() == "earlier"  # the new file took the place of the old one at once
    assert files[0].read_bytes() == files[1].read_bytes()
    write_report([folder], files[1])
    assert 50_000 < files[1].stat().st_size < 1_000_000


def test_an_earlier_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = write_run(tmp_path / "a"), tmp_path / "report.html"
    output.write_text("earlier")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"report\.html cannot be written \(No space left on device\)"):
        write_report([folder], output)
    assert output.read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "report.html"}


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    folder = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
    write_report([folder], tmp_path / "report.html")
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


# The command.


@pytest.mark.process
def test_the_command_is_light(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"report: {folder}/report.html\n"


def test_where_reports_go(cli: Callable[..., Result], tmp_path: Path) -> None:
    for n, name in enumerate("ab"):
        write_run(tmp_path / name, seed=n)
    for args, file in (("a",), "a/report.html"), (("a", "b"), "report.html"), (("b", "--output", "x.html"), "x.html"):
        result = cli("report", *args)
        assert (result.status, result.out, result.err) == (0, f"report: {file}\n", "")
        assert (tmp_path / file).read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "b/report.html").exists()
    # anybody may read it whom the umask lets
    assert (tmp_path / "x.html").stat().st_mode == (tmp_path / "a/run.json").stat().st_mode


def test_a_comparison_is_never_the_report_of_one_run(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, name in enumerate("ab"):
        write_run(tmp_path / name, seed=n)
    one_line(cli("report", "a", "b", "--output", "b/report.html"), 2, "--output", "b/report.html", "another file")
    one_line(cli("report", "a", "--output", "b/report.html"), 2, "--output", "b/report.html", "another file")
    monkeypatch.chdir(tmp_path / "a")
    one_line(cli("report", "../a", "../b"), 2, "--output")
    assert not list(tmp_path.glob("*/report.html"))


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, ("RUN_DIR",)),
        (["nowhere"], 2, ("nowhere", "version_0")),
        (["run", "nowhere"], 2, ("nowhere",)),
        (["run", "run/../run"], 2, ("twice",)),
        (["run", "--outpt", "x"], 2, ("--outpt",)),
        (["."], 3, ("not the folder of a run",)),
        (["broken"], 3, ("broken", "test.json")),
        (["run", "--output", "nowhere/x.html"], 6, ("--output", "nowhere")),
        (["run", "--output", "run"], 6, ("--output", "no file")),
        (["run", "--output", "/dev/null"], 6, ("--output", "/dev/null")),
        (["run", "--output", "/proc/x.html"], 6, ("x.html",)),
        (["x" * 300], 2, ("no folder",)),
        (["run", "--output", "x" * 300 + ".html"], 6, ("too long",)),
        (["run", "--output", "run/metrics.csv"], 2, ("metrics.csv", ".html")),
    ],
)
def test_one_line_for_what_is_wrong(
    cli: Callable[..., Result], tmp_path: Path, args: list[str], status: int, words: tuple[str, ...]
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/test.json").write_text("{")
    result = cli("report", *args)
    one_line(result, status, *words)
    assert result.out == ""


def test_help(cli: Callable[..., Result]) -> None:
    result = cli("report", "--help")
    assert result.status == 0
    assert "RUN_DIR" in result.out
    assert "--output FILE" in result.out
    assert "cifar-resnets report logs/" in result.out


@pytest.mark.process
def test_a_terminal_that_cannot_show_the_path(tmp_path: Path) -> None:
    write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    done = subprocess.run(
        [sys.executable, "-m", "cifar_resnets", "report", b"caf\xe9"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"report: caf\\udce9/report.html\n"


def test_a_validation_among_tests_is_named(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in "ab"]
    for path in list(folders[1].glob("test*")):
        path.rename(path.with_name(path.name.replace("test", "val")))
    page = render([read_run(folder, folder.name) for folder in folders])
    assert page.count("of validation images") == 1
    assert "validated only" in page
