"""The page of predicted images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cifar_resnets.reports.contact_sheet import MOST_FAILURES, ContactSheet

BLACK = np.zeros((8, 8, 3), np.uint8)


def page_of(probabilities: list[float], most: int = 500) -> str:
    sheet = ContactSheet("best.ckpt", most)
    for number, p in enumerate(probabilities):
        sheet.add(f"{number}.png", [("cat", p), ("dog", 1 - p)], BLACK)
    return sheet.render()


def test_the_least_sure_come_first_and_only_some_are_kept() -> None:
    probabilities = np.random.default_rng(0).uniform(0.5, 1, 300).round(2).tolist()  # with equal ones
    page = page_of(probabilities, most=20)
    order = sorted(range(300), key=lambda number: (probabilities[number], number))[:20]
    assert re.findall(r'class="path"><bdi>(\d+)\.png', page) == [str(number) for number in order]
    assert "Only the 20 images of which the network is least sure are shown; predictions.csv holds all." in page
    assert "300 images, the least sure first" in page
    assert "Only the" not in page_of([0.5])


def test_a_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    sheet = ContactSheet("<b>.ckpt")
    sheet.add("<script>\n\udce9.png", [("<i>", 1.0)], BLACK)
    sheet.add("large.png", [("cat", 0.9)], np.zeros((300, 200, 3), np.uint8))
    for _ in range(MOST_FAILURES + 1):
        sheet.add_failure("<u>", "no & image")
    sheet.write(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;\\n\\udce9.png" in page and "&lt;i&gt;" in page
    assert (
        page.count("no &amp; image") == MOST_FAILURES and f"The first {MOST_FAILURES} of {MOST_FAILURES + 1}." in page
    )
    sources = re.findall(r'src="([^"]*)"', page)
    assert [source.partition(",")[0] for source in sources] == ["data:image/jpeg;base64", "data:image/png;base64"]
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
