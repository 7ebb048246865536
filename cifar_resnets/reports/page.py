"""`cifar-resnets report`: one HTML file about a run, or about several side by side; neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifar_resnets import __version__
from cifar_resnets.errors import OutputError
from cifar_resnets.reports.classes import (
    calibration,
    calibration_figure,
    class_rows,
    confused_pairs,
    matrix,
    num_without_probabilities,
)
from cifar_resnets.reports.curves import search_panel, training_panels
from cifar_resnets.reports.formatting import percent
from cifar_resnets.reports.image_samples import gallery
from cifar_resnets.reports.layers import layer_table
from cifar_resnets.reports.overview import command, figures, headline, origin, recipe, subtitle, timing
from cifar_resnets.reports.side_by_side import figure_table, recipe_table, setting_table, versus
from cifar_resnets.results.run_folder import Run, labels_of, read_run
from cifar_resnets.support.atomic_file import replacing


def write_report(folders: Sequence[Path], output: Path, notes: Sequence[str] = ()) -> None:
    """Writes a report, or leaves an earlier one as it was.

    Args:
        folders: of the runs, the baseline first.
        output: the HTML file.
        notes: remarks about the first run.

    Raises:
        ConfigurationError: for a folder that is missing or given twice.
        DataError: for one that is not a run's, or of which nothing can be read.
        OutputError: when the file cannot be written.
    """
    runs = [read_run(folder, label) for folder, label in zip(folders, labels_of(folders), strict=True)]
    runs[0].notes.extend(notes)
    # a path may hold bytes that are no text
    write_atomically(output, render(runs).encode("utf-8", errors="replace"))


def render(runs: Sequence[Run]) -> str:
    """Returns the page, the same for the same runs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_page(runs))


def _page(runs: Sequence[Run]) -> dict[str, Any]:
    one, rest = len(runs) == 1, list(enumerate(runs))[1:]
    return {
        "version": __version__,
        "kind": "Report of a run" if one else f"{len(runs)} runs side by side",
        "title": _title(runs),
        "subtitle": subtitle(runs[0]) if one else "",
        "panels": training_panels(runs),
        "runs": [_about(run, in_full=one) for run in runs],
        "figure_table": {} if one else figure_table(runs),
        "recipe_table": {} if one else recipe_table(runs),
        "setting_table": {} if one else setting_table(runs),
        "versus": [versus(runs[0], run, color) for color, run in rest],
    }


def _title(runs: Sequence[Run]) -> str:
    names = [run.label for run in runs]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"


def _about(run: Run, in_full: bool) -> dict[str, Any]:
    """Returns what the page shows of a run; the images only in its own report."""
    reliability = calibration(run)
    about = {
        "label": run.label,
        "headline": headline(run),
        "notes": run.notes,
        "command": command(run),
        "origin": origin(run),
        "changed": run.record.changed,
        "config": run.config_text,
        "pairs": confused_pairs(run),
        "calibration": calibration_figure(run),
        "ece": percent(reliability.ece) if reliability else "",
    }
    return about | (_in_full(run) if in_full else {})


def _in_full(run: Run) -> dict[str, Any]:
    return {
        "figures": figures(run),
        "recipe": recipe(run),
        "classes": class_rows(run),
        "matrix": matrix(run),
        "num_without": num_without_probabilities(run),
        "gallery": gallery(run),
        "heat": run.gallery.source if run.gallery else None,
        "no_mistakes": run.gallery is not None or run.mistakes is not None,
        "search": search_panel(run),
        "layers": layer_table(run.layers),
        "timing": timing(run),
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file at once, so that half of it is never read.

    Raises:
        OutputError: when it cannot be written; an earlier file is left as it was.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
