"""SVG is read back as XML: that names are text, colors variables and ids unique; images by their pixels."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from report_runs import HOSTILE

from cifar_resnets.figures.render import to_image, to_svg
from cifar_resnets.figures.style import PALETTE, add_legend, apply, new_figure

NAMES = [*HOSTILE, "$x^2$", "#1f5fbf", ' id="p1" ', "url(#x) 0.123456"]


def figure() -> Figure:
    made = new_figure(200, 150, "A title of $100")
    axes = made.add_subplot()
    apply(axes)
    for number, name in enumerate(NAMES):
        color = list(PALETTE.values())[4 + number % 8]
        axes.plot([0, 1], [0, 1 / (3 + number)], marker="o", label=name, color=color)
    add_legend(axes, "upper left")
    return made


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def test_it_is_an_element_with_a_size_and_a_label() -> None:
    root = parsed(to_svg(figure(), "a", 'a "label" <b>'))
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", 'a "label" <b>')
    assert (root.get("viewBox"), root.get("style")) == ("0 0 200 150", "--width:200")
    assert {each.tag for each in root.iter()} <= {"svg", "g", "path", "text", "defs", "use", "clipPath", "rect"}
    assert not any(key.startswith("on") for each in root.iter() for key in each.keys())


def test_names_are_text() -> None:
    texts = [each.text for each in parsed(to_svg(figure(), "a", "")).iter("text")]
    assert set(NAMES) <= set(texts)
    assert "A title of $100" in texts


def test_colors_are_variables_of_the_page() -> None:
    styles = " ".join(each.get("style", "") for each in parsed(to_svg(figure(), "a", "")).iter())
    assert set(re.findall(r"var\(--(\w+)\)", styles)) >= {"ink", "muted", "line", *(f"s{n}" for n in range(7))}
    assert "#" not in styles
    assert "rgb" not in styles


def test_ids_are_those_of_one_figure_and_lead_somewhere() -> None:
    ids = []
    for name in ("a", "b"):
        svg = to_svg(figure(), name, "")
        own = [each.get("id", "") for each in parsed(svg).iter() if "id" in each.keys()]
        assert set(re.findall(r"url\(#(\w+)\)|href=\"#(\w+)\"", re.sub(">[^<]*<", "><", svg))) <= {
            pair for each in own for pair in ((each, ""), ("", each))
        }
        ids += own
    assert len(ids) == len(set(ids)) > 4


def test_the_same_figure_is_the_same_text_and_settings_stay() -> None:
    settings = dict(matplotlib.rcParams)
    assert to_svg(figure(), "a\udcff", "") == to_svg(figure(), "a\udcff", "")
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.filterwarnings("error")
def test_a_letter_without_a_glyph_is_no_warning() -> None:
    made = new_figure(100, 50)
    made.text(0.5, 0.5, "猫")
    assert np.asarray(to_image(made)).min() < 100
    assert "猫" in to_svg(made, "a", "")
