"""Several runs side by side: their figures, their settings, and the images on which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cifar_resnets.reports.formatting import MISSING, Fact, p_text, percent, points
from cifar_resnets.reports.image_samples import Thumbnails, newly_right, newly_wrong
from cifar_resnets.reports.overview import figures, origin, recipe
from cifar_resnets.results.comparison import Difference, compare, differing_settings
from cifar_resnets.results.run_folder import Run

LEFT_OUT = ("versions", "platform", "checkpoint")  # they stand below, in full


@dataclass(frozen=True)
class DifferenceRow:
    """A class, or all images, for two runs; its bar is from -1 to 1."""

    name: str
    images: int
    accuracies: tuple[str, str]
    change: str
    bar: float
    newly_right: int
    newly_wrong: int
    p_value: str
    significant: bool


@dataclass(frozen=True)
class Versus:
    """A run beside the first one.

    Args:
        first, second: labels of the runs.
        color: number of the second run's colour.
        reason: why they cannot be compared; the rest is empty then.
        overall: how they differ on all images.
        rows: on each class.
        newly_right, newly_wrong: images on which the second run differs from the first.
    """

    first: str
    second: str
    color: int
    reason: str = ""
    overall: DifferenceRow | None = None
    rows: list[DifferenceRow] = field(default_factory=list)
    newly_right: Thumbnails | None = None
    newly_wrong: Thumbnails | None = None


def figure_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the figures of the runs besides their accuracy: a column a figure, a cell a run."""
    return _table([figures(run) for run in runs])


def recipe_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns what was trained: a row for each part of the recipe, a cell a run."""
    return _table([[*recipe(run), *origin(run)] for run in runs])


def _table(lists: Sequence[Sequence[Fact]]) -> dict[str, list[str]]:
    names = dict.fromkeys(fact.name for facts in lists for fact in facts if fact.name not in LEFT_OUT)
    return {name: [_value(facts, name) for facts in lists] for name in names}


def _value(facts: Sequence[Fact], name: str) -> str:
    return next((fact.value for fact in facts if fact.name == name), MISSING)


def setting_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the settings that are not the same in all runs."""
    differing = differing_settings([run.config for run in runs])
    return {key: [MISSING if value is None else value for value in values] for key, values in differing.items()}


def versus(first: Run, second: Run, color: int) -> Versus:
    """Compares a run with the first one, image by image."""
    if first.stage != second.stage:
        return Versus(first.label, second.label, color, "one was tested, the other one validated only")
    missing = [run.label for run in (first, second) if run.predictions is None]
    if first.predictions is None or second.predictions is None:
        return Versus(
            first.label, second.label, color, f"there is no {first.stage}_predictions.csv of {' or of '.join(missing)}"
        )
    try:
        comparison = compare(first.predictions, second.predictions)
    except ValueError as error:
        return Versus(first.label, second.label, color, str(error))
    largest = max((abs(each.change) for each in comparison.classes), default=0.0)
    return Versus(
        first.label,
        second.label,
        color,
        overall=_row(comparison.overall, largest),
        rows=[_row(each, largest) for each in comparison.classes],
        newly_right=newly_right(first, comparison),
        newly_wrong=newly_wrong(second, comparison),
    )


def _row(difference: Difference, largest: float) -> DifferenceRow:
    first, second = (correct / difference.images if difference.images else None for correct in difference.correct)
    return DifferenceRow(
        difference.name,
        difference.images,
        (percent(first), percent(second)),
        points(difference.change) if difference.images else MISSING,
        difference.change / largest if largest else 0.0,
        difference.newly_right,
        difference.newly_wrong,
        p_text(difference.p_value),
        difference.p_value < 0.05,
    )
