"""Prints the table of a network's layers, for a terminal or as CSV, Markdown or JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_resnets.receptive_field.measured import Measurement
from cifar_resnets.receptive_field.theory import Layer, Summary
from cifar_resnets.support.text import csv_text, markdown_table

FORMATS = ("table", "csv", "markdown", "json")
WIDE = 120  # smallest width of a terminal that shows all columns

# the columns of CSV and Markdown
COLUMNS = (
    *("layer", "type", "kernel_size", "padding", "stride", "image_size_in", "jump_in", "jump_out", "image_size_out"),
    *("receptive_field_in", "receptive_field_out", "in_channels", "out_channels", "parameters"),
    *("dilation", "groups", "min_receptive_field_in", "min_receptive_field_out", "start", "multiply_adds"),
    "exceeds_image",
)

Measurements = Mapping[str, Measurement] | None


def print_summary(summary: Summary, style: str, console: Console, measurements: Measurements = None) -> None:
    """Prints a summary, with a column of measurements if they are given.

    Args:
        summary: of a network.
        style: one of FORMATS.
        console: to print on.
        measurements: by layer.
    """
    if style == "table":
        console.print(_table(summary, console.width >= WIDE, measurements))
        for line in _footer(summary, measurements):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    if style == "json":
        console.file.write(_json(summary, measurements))
        return
    rows = [_row(layer) for layer in summary.layers]
    if measurements is not None:
        for row, measurement in zip(rows, measured_rows(summary, measurements), strict=True):
            row["measured"] = measured_text(measurement)
    columns = list(rows[0]) if rows else COLUMNS
    text = csv_text(rows, columns) if style == "csv" else markdown_table(rows, columns, left=("layer", "type"))
    console.file.write(text)


def measured_rows(summary: Summary, measurements: Measurements) -> list[Measurement | None]:
    """Returns the measurement of each row; of a module with several rows, the last one is its output."""
    last = {layer.layer: layer for layer in summary.layers}
    found = measurements or {}
    return [found.get(layer.layer) if last[layer.layer] is layer else None for layer in summary.layers]


def measured_text(measurement: Measurement | None) -> str:
    """Formats the measured field and whether it agrees with theory; empty for layers that were not measured."""
    if measurement is None:
        return ""
    axes = zip(measurement.field, measurement.theory, measurement.size, strict=True)
    texts = ["all" if low < 0 and high >= size else str(field) for field, (low, high), size in axes]
    field = texts[0] if len(set(texts)) == 1 else "x".join(texts)
    return f"{field} {'ok' if measurement.agrees else 'WRONG'}"


def pair_text(values: Sequence[float], infinite: str = "inf", missing: str = "") -> str:
    """Formats height and width as one number if they are equal, else as `3x1`."""
    texts = [infinite if math.isinf(v) else missing if math.isnan(v) else f"{v:.10g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _row(layer: Layer) -> dict[str, str]:
    values = {name: getattr(layer, name) for name in COLUMNS}
    cells = {name: pair_text(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
    return cells | {"exceeds_image": str(layer.exceeds_image).lower()}


def _json(summary: Summary, measurements: Measurements) -> str:
    layers = []
    for layer, measurement in zip(summary.layers, measured_rows(summary, measurements), strict=True):
        values = {name: _plain(value) for name, value in asdict(layer).items()}
        values["sees_whole_image"] = any(math.isinf(field) for field in layer.receptive_field_out)
        if measurement:
            values |= {"measured": measurement.field, "agrees": measurement.agrees}
        layers.append(values)
    totals = {"parameters": summary.parameters, "multiply_adds": summary.multiply_adds, "notes": summary.notes}
    document = {"network": summary.network, "input_size": summary.input_size, **totals, "layers": layers}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Converts a value to JSON, which has no infinity: null if a unit sees the whole image."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else int(value) if value.is_integer() else value
    return value


def _table(summary: Summary, wide: bool, measurements: Measurements) -> Table:
    channels, height, width = summary.input_size
    title = f"{summary.network}, images of {channels} x {height} x {width}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    # in a narrow terminal, only these two columns are shortened
    table.add_column("layer", overflow="ellipsis")
    table.add_column("type", overflow="ellipsis", max_width=24 if wide else 11)
    for heading in _headings(wide):
        table.add_column(heading, justify="right", no_wrap=True)
    if measurements is not None:
        table.add_column("measured", justify="right", no_wrap=True)
    for layer, measurement in zip(summary.layers, measured_rows(summary, measurements), strict=True):
        cells = [_ending(layer.layer, 40 if wide else 14 if measurements else 20), layer.type, *_cells(layer, wide)]
        if measurements is not None:
            cells.append(measured_text(measurement))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _ending(name: str, length: int) -> str:
    """Shortens a name to its end, in which layers differ."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _headings(wide: bool) -> list[str]:
    if not wide:
        return ["k/s", "size", "chan.", "jump", "field", "min", "parameters"]
    return ["kernel/stride", "padding", "size", "channels", "jump", "field", "min", "start", "parameters", "mult.-adds"]


def _cells(layer: Layer, wide: bool) -> list[str]:
    step = pair_text(layer.stride)
    window = pair_text(layer.kernel_size)
    kernel = "" if window == step == "1" and not layer.multiply_adds else f"{window}/{step}"
    if layer.dilation != (1, 1):
        kernel += f" d{pair_text(layer.dilation)}"
    field = pair_text(layer.receptive_field_out, infinite="image")
    field += "*" if layer.exceeds_image and field != "image" else " "
    size, jump = pair_text(layer.image_size_out), pair_text([round(jump, 2) for jump in layer.jump_out])
    narrowest = pair_text(layer.min_receptive_field_out, infinite="image", missing="?")
    parameters = f"{layer.parameters:,}" if layer.parameters else ""
    if not wide:
        return [kernel, size, str(layer.out_channels), jump, field, narrowest, parameters]
    padding, macs = pair_text(layer.padding), f"{layer.multiply_adds:,}" if layer.multiply_adds else ""
    channels = f"{layer.in_channels} > {layer.out_channels}"
    return [kernel, "" if padding == "0" else padding, size, channels, jump, field, narrowest, pair_text(layer.start),
            parameters, macs]  # fmt: skip


def _footer(summary: Summary, measurements: Measurements) -> list[str]:
    lines = [f"{summary.parameters:,} parameters, {summary.multiply_adds:,} multiply-adds for one image"]
    if any(layer.exceeds_image for layer in summary.layers):
        lines.append("* sees more than the image: its field reaches beyond the border")
    if measurements is not None:
        agreeing = sum(measurement.agrees for measurement in measurements.values())
        lines.append(f"verified: theory and measurement agree in {agreeing} of {len(measurements)} layers measured")
    return lines + [f"note: {note}" for note in summary.notes]
