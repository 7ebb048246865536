"""Groups runs that differ only in their seed, with the mean and spread of their accuracies."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cifar_resnets.results.comparison import differing_settings
from cifar_resnets.results.trained_runs import Setup, TrainedRun

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Spread:
    """Mean and spread of accuracies from 0 to 1.

    Args:
        std: sample standard deviation (n - 1); None for one value.
        interval: 95 % confidence interval of the mean; None for one value.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class Group:
    """Runs with the same name and settings.

    Args:
        settings: those that differ from other groups of that name, by the keys of the command line.
        runs: those with a result, one for each seed, in the order of the seeds.
        num_missing: number of seeds without a result.
    """

    name: str
    network: str
    settings: dict[str, str]
    runs: list[TrainedRun]
    num_missing: int
    notes: list[str]

    @property
    def test(self) -> Spread | None:
        """Returns mean and spread of the test accuracy; None without runs."""
        return spread([run.accuracy for run in self.runs])

    @property
    def val_mean(self) -> float | None:
        """Returns the mean of the best validation accuracies; None unless it is known for all runs."""
        known = [run.val_accuracy for run in self.runs if run.val_accuracy is not None]
        return statistics.fmean(known) if known and len(known) == len(self.runs) else None


def group_runs(runs: Sequence[TrainedRun]) -> list[Group]:
    """Groups runs that differ only in the seed; runs without a readable setup are left out."""
    members: dict[Key, list[tuple[Setup, TrainedRun]]] = {}
    for run in runs:
        if run.setup is not None:
            key = run.setup.name, tuple(sorted(run.setup.settings.items()))
            members.setdefault(key, []).append((run.setup, run))
    names = dict.fromkeys(name for name, _ in members)
    return [group for name in names for group in _groups(name, [m for key, m in members.items() if key[0] == name])]


def _groups(name: str, members: Sequence[Sequence[tuple[Setup, TrainedRun]]]) -> list[Group]:
    setups = [member[0][0] for member in members]
    settings = distinguishing([setup.settings for setup in setups])
    return [_group(name, *parts) for parts in zip(setups, settings, members, strict=True)]


def _group(name: str, setup: Setup, settings: dict[str, str], members: Sequence[tuple[Setup, TrainedRun]]) -> Group:
    by_seed: dict[int, list[TrainedRun]] = {}
    for own, run in members:
        by_seed.setdefault(own.seed, [])
        by_seed[own.seed] += [] if run.problem else [run]
    of_seed = {seed: sorted(by_seed[seed], key=lambda run: run.started) for seed in sorted(by_seed)}
    runs = [each[-1] for each in of_seed.values() if each]
    older = [
        f"{run.folder} is left out: {each[-1].folder} has the same seed, {seed}, and is newer"
        for seed, each in of_seed.items()
        for run in each[:-1]
    ]
    return Group(name, setup.network, settings, runs, len(of_seed) - len(runs), [*older, *_notes(name, runs)])


def _notes(name: str, runs: Sequence[TrainedRun]) -> list[str]:
    unread = [f"{run.folder}: {note}" for run in runs for note in run.notes]
    unread += [f"{run.folder}: its validation accuracy is not known" for run in runs if run.val_accuracy is None]
    commits = list(dict.fromkeys(run.commit[:10] or "unknown" for run in runs))
    several = [f"{name}: its runs are of several versions of the code, {', '.join(commits)}"]
    return unread + (several if len(commits) > 1 else [])


def distinguishing(settings: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns for each of several groups the settings that differ, by the keys of the command line.

    The defaults of another class are not listed beside its name, and the network is not a setting.
    """
    differing = differing_settings(settings)
    classes = [key.removesuffix("class_path") for key in differing if key.endswith(".class_path")]
    for key, values in list(differing.items()):
        is_of_class = any(f"{key}.".startswith(f"{each}init_args.") for each in classes)
        if key == "model.network" or (is_of_class and len({value for value in values if value is not None}) == 1):
            del differing[key]
    return [
        {_typed(key): _short(key, value) for key, values in differing.items() if (value := values[index]) is not None}
        for index in range(len(settings))
    ]


def _typed(key: str) -> str:
    """Returns a key as users type it: data.batch_size for data.init_args.batch_size."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def _short(key: str, value: str) -> str:
    """Returns a value, with classes shortened to their names."""
    return ", ".join(each.rpartition(".")[2] for each in value.split(", ")) if key.endswith(".class_path") else value


def spread(values: Sequence[float]) -> Spread | None:
    """Returns mean and spread of accuracies; None without values."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Spread(mean, None, None, mean, mean)
    low, high = mean_interval(values)
    return Spread(mean, statistics.stdev(values), (max(low, 0.0), min(high, 1.0)), min(values), max(values))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean of two or more values, by Student's t distribution."""
    from scipy.special import stdtrit  # as scipy.stats.t.ppf, whose import takes three times as long

    mean = statistics.fmean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half
