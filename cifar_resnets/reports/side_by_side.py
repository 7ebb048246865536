"""Several runs side by side: their figures, their settings, and the images on which they differ."""

from collections.abc import Sequence
from typing import Any

from cifar_resnets.reports.formatting import MISSING, Fact
from cifar_resnets.reports.image_samples import thumbnails
from cifar_resnets.reports.overview import figures, origin, recipe
from cifar_resnets.results.comparison import compare, differing_settings
from cifar_resnets.results.run_folder import Run

LEFT_OUT = ("versions", "platform", "checkpoint")  # they stand below, in full


def figure_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the figures of the runs besides their accuracy: a column a figure, a cell a run."""
    return _table([figures(run) for run in runs])


def recipe_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns what was trained: a row for each part of the recipe, a cell a run."""
    return _table([[*recipe(run), *origin(run)] for run in runs])


def _table(lists: Sequence[Sequence[Fact]]) -> dict[str, list[str]]:
    names = dict.fromkeys(fact.name for facts in lists for fact in facts if fact.name not in LEFT_OUT)
    values = [{fact.name: fact.value for fact in facts} for facts in lists]
    return {name: [each.get(name, MISSING) for each in values] for name in names}


def setting_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the settings that are not the same in all runs."""
    differing = differing_settings([run.config for run in runs])
    return {key: [MISSING if value is None else value for value in values] for key, values in differing.items()}


def versus(first: Run, second: Run) -> dict[str, Any]:
    """Compares a run with the first one, image by image.

    Returns:
        The labels of both; the `reason` why they cannot be compared, or an empty one and how they differ: `overall` and
        `classes`, the `largest` change of a class, and images that only one classifies correctly.
    """
    found: dict[str, Any] = {"first": first.label, "second": second.label, "reason": ""}
    if first.stage != second.stage:
        return found | {"reason": "one was tested, the other one validated only"}
    if first.predictions is None or second.predictions is None:
        missing = " or of ".join(run.label for run in (first, second) if run.predictions is None)
        return found | {"reason": f"there is no {first.stage}_predictions.csv of {missing}"}
    try:
        comparison = compare(first.predictions, second.predictions)
    except ValueError as error:
        return found | {"reason": str(error)}
    return found | {
        "overall": comparison.overall,
        "classes": comparison.classes,
        "largest": max((abs(each.change) for each in comparison.classes), default=0.0),
        "newly_right": thumbnails(first, comparison.newly_right),
        "newly_wrong": thumbnails(second, comparison.newly_wrong),
    }
