"""`cifar-resnets report`: one HTML file about a run, or about several side by side; neither torch nor Lightning."""

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
from cifar_resnets.reports.formatting import interval, p_text, percent, points
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
    return environment().get_template("report.html.j2").render(version=__version__, **_page(runs))


def environment() -> Environment:
    """Returns the templates of this folder, and the filters that they use."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "interval": interval, "points": points, "p_text": p_text}
    return templates


def _page(runs: Sequence[Run]) -> dict[str, Any]:
    labels = [run.label for run in runs]
    page: dict[str, Any] = {
        "title": ", ".join(labels) if len(labels) < 4 else f"{labels[0]} and {len(labels) - 1} others",
        "panels": training_panels(runs),
    }
    if len(runs) == 1:
        run = _about(runs[0]) | _alone(runs[0])
        return page | {"kind": "Report of a run", "subtitle": subtitle(runs[0]), "run": run}
    return page | {
        "kind": f"{len(runs)} runs side by side",
        "subtitle": "",
        "runs": [_about(run) for run in runs],
        "figure_table": figure_table(runs),
        "recipe_table": recipe_table(runs),
        "setting_table": setting_table(runs),
        "versus": [versus(runs[0], run) for run in runs[1:]],
    }


def _about(run: Run) -> dict[str, Any]:
    """Returns what each report shows of a run."""
    reliability = calibration(run)
    return {
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


def _alone(run: Run) -> dict[str, Any]:
    """Returns what the report of a single run shows besides."""
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
