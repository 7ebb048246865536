"""The table in each of its formats: the same figures, complete, and readable by others."""

import csv
import io
import json
import math

import pytest
import timm
from rich.console import Console
from torch import nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.receptive_field.measured import verify
from cifar_resnets.receptive_field.table import FORMATS, pair_text, print_summary
from cifar_resnets.receptive_field.theory import summarize

FIRST_COLUMNS = (
    "layer,type,kernel_size,padding,stride,image_size_in,jump_in,jump_out,image_size_out,receptive_field_in,"
    "receptive_field_out,in_channels,out_channels,parameters"
)


def odd_network():
    """Asymmetric, dilated, grouped, with fractional jumps, and in the end of the whole image."""

    class Gate(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    convs = nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, 3, 2, dilation=(1, 2), groups=2)
    return nn.Sequential(*convs, nn.Upsample(scale_factor=4), Gate(), nn.Conv2d(4, 4, 1))


NETWORKS = {
    "odd": (odd_network(), (32, 48)),
    "resnet": (timm.create_model("cifar_resnet34_imagenet_stem", depths=(1, 1, 1, 1)), 224),
    "wide": (timm.create_model("cifar_wide_resnet16_8"), 32),
}


@pytest.fixture(params=NETWORKS)
def summary(request):
    return summarize(*NETWORKS[request.param])


def printed(summary, style, width=80, measurements=None):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(summary, style, console, measurements)
    return console.file.getvalue()


def numbers(text):
    """`3x1` back to two figures."""
    texts = text.split("x") if text else ["nan"]
    return tuple(float(each) for each in (texts if len(texts) == 2 else texts * 2))


def same(first, second):
    return all(a == b or math.isnan(a) and math.isnan(b) for a, b in zip(first, second, strict=True))


def test_csv_begins_with_the_columns_of_the_published_table(summary):
    header = printed(summary, "csv").splitlines()[0]
    assert header.startswith(FIRST_COLUMNS + ",")


def test_csv_parses_back_to_the_same_figures(summary):
    rows = list(csv.DictReader(io.StringIO(printed(summary, "csv"))))
    for row, layer in zip(rows, summary.layers, strict=True):
        assert None not in row
        for name, text in row.items():
            value = getattr(layer, name)
            if isinstance(value, bool):
                assert text == str(value).lower()
            elif isinstance(value, tuple):
                assert same(numbers(text), value), name
            else:
                assert text == str(value)


def test_json_is_strict_and_holds_the_same_figures(summary):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(printed(summary, "json"), parse_constant=refuse)
    assert document["parameters"] == summary.parameters
    assert document["multiply_adds"] == summary.multiply_adds
    assert document["input_size"] == list(summary.input_size)
    for values, layer in zip(document["layers"], summary.layers, strict=True):
        for name, value in values.items():
            if name == "sees_whole_image":
                assert value == any(math.isinf(field) for field in layer.receptive_field_out)
                continue
            expected = getattr(layer, name)
            if isinstance(expected, tuple):
                expected = [each if math.isfinite(each) else None for each in expected]
            assert value == expected, name


def test_markdown_has_as_many_cells_in_each_line(summary):
    lines = printed(summary, "markdown").splitlines()
    assert len(lines) == len(summary.layers) + 2
    assert len({line.count("|") for line in lines}) == 1


def test_markdown_escapes_what_would_be_a_cell():
    network = nn.Sequential()
    network.add_module("a|b", nn.Conv2d(3, 4, 1))
    lines = printed(summarize(network), "markdown").splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_and_cuts_no_figure(summary, width):
    table, *_ = printed(summary, "table", width).split(f"{summary.parameters:,} parameters,")
    lines = table.splitlines()
    assert max(len(line) for line in lines) <= width
    rows = lines[2 : 2 + len(summary.layers)]
    for row, layer in zip(rows, summary.layers, strict=True):
        cells = row.split()
        assert not any("…" in cell for cell in cells[2:])
        assert any(pair_text(layer.image_size_out) == cell for cell in cells)
        assert str(layer.out_channels) in cells
        if layer.parameters:
            assert f"{layer.parameters:,}" in cells
        field = pair_text(layer.receptive_field_out, infinite="image")
        assert field in [cell.rstrip("*") for cell in cells]


@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet34_imagenet_stem"])
def test_the_table_with_measurements_fits(name, size):
    network = timm.create_model(name, depths=(1,) * (3 if name == "cifar_resnet20" else 4))
    summary, measurements = summarize(network, size), verify(network, size)
    text = printed(summary, "table", 80, measurements)
    table = text.split(f"{summary.parameters:,} parameters,")[0].splitlines()
    assert max(len(line) for line in table) <= 80
    assert len(table) == len(summary.layers) + 2
    for line, layer in zip(table[2:], summary.layers, strict=True):
        figures = line.split()[2:]
        assert "…" not in "".join(figures)
        assert pair_text(layer.image_size_out) in figures
        assert not layer.parameters or f"{layer.parameters:,}" in figures
    assert sum(line.endswith(" ok ") for line in table) == len(measurements)


def test_the_footer_says_what_a_reader_should_know():
    network, size = timm.create_model("cifar_resnet20", depths=(1, 1, 1)), 32
    measurements = verify(network, size)
    summary = summarize(network, size)
    text = printed(summary, "table", 80, measurements)
    count = len(measurements)
    assert f"theory and measurement agree in {count} of {count} layers measured" in text
    assert f"{summary.parameters:,} parameters, {summary.multiply_adds:,} multiply-adds" in text
    assert "* sees more than the image" in text


def test_measurements_are_in_every_format():
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    summary, measurements = summarize(network), verify(network)
    document = json.loads(printed(summary, "json", measurements=measurements))
    assert sum(row.get("agrees", False) for row in document["layers"]) == len(measurements)
    rows = list(csv.DictReader(io.StringIO(printed(summary, "csv", measurements=measurements))))
    assert sum(row["measured"].endswith(" ok") for row in rows) == len(measurements)
    assert len({line.count("|") for line in printed(summary, "markdown", measurements=measurements).splitlines()}) == 1


def test_pairs():
    assert pair_text((3, 3)) == "3"
    assert pair_text((3, 1)) == "3x1"
    assert pair_text((0.5, 0.5)) == "0.5"
    assert pair_text((math.inf, math.inf)) == "inf"
    assert pair_text((math.inf, 5), infinite="image") == "imagex5"
    assert pair_text((math.nan, math.nan), missing="?") == "?"


def test_every_format_shows_the_whole_image():
    summary = summarize(*NETWORKS["odd"])
    assert " image " in printed(summary, "table")
    assert ",inf," in printed(summary, "csv").splitlines()[-1]
    assert "| inf |" in printed(summary, "markdown").splitlines()[-1]
    assert json.loads(printed(summary, "json"))["layers"][-1]["receptive_field_out"] == [None, None]
    assert "3x1" in printed(summary, "table")
    assert set(FORMATS) == {"table", "csv", "markdown", "json"}
