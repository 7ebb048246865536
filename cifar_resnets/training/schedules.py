"""Learning-rate schedules after published formulas; the classifier passes them the length of the run.

A schedule is a frozen dataclass; to add one, add a class here and its name to `Schedule.from_config`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.support.former_names import current_names

_require = functools.partial(require, "model.schedule")


class Schedule(ABC):
    """Base class: a function from optimizer steps to learning rates, and perhaps momenta."""

    @abstractmethod
    def build(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, lr: float | None = None
    ) -> LRScheduler:
        """Builds the scheduler, which is stepped after each optimizer step.

        Args:
            optimizer: its rates are the base, or the peak, of the schedule.
            total_steps: optimizer steps of the whole run.
            steps_per_epoch: optimizer steps of an epoch.
            lr: the base rate, of which the groups' rates are multiples; that of the first group if not given.

        Raises:
            ConfigurationError: when the schedule does not fit the run or the optimizer.
        """

    def check_length(self, epochs: float) -> None:  # noqa: B027  a schedule of fractions fits any run
        """Raises ConfigurationError if a run of so many epochs is too short for the schedule."""

    def set_peak_momentum(self, optimizer: Optimizer) -> None:  # noqa: B027  most schedules do not change it
        """Sets an optimizer's momentum to that at the base or peak rate, if the schedule changes the momentum."""

    @property
    def awaits_rate(self) -> bool:
        """Whether a rate is still to be found, see `lr_min` of OneCycle."""
        return False

    def with_found(self, lr_min: float | None) -> Schedule:
        """Returns the schedule with a rate that was found in the place of `lr_min: found`; itself if there is none."""
        return dataclasses.replace(self, lr_min=lr_min) if self.awaits_rate else self  # type: ignore[type-var]  # one

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule as a recipe names it, in primitives."""
        return {"class_path": _path(type(self)), "init_args": dataclasses.asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Schedule:
        """Builds a schedule from the result of `to_config`; only classes of this module are allowed.

        Raises:
            ConfigurationError: for another class.
        """
        known = {_path(cls): cls for cls in (OneCycle, Step, Cosine, Constant)}
        class_path = current_names(config.get("class_path"))
        if class_path not in known:
            raise ConfigurationError(f"model.schedule: {class_path!r} is not one of {', '.join(known)}")
        try:
            return known[class_path](**config.get("init_args", {}))
        except TypeError as error:
            raise ConfigurationError(f"model.schedule: {error}") from error


def _require_within(name: str, value: float, epochs: float) -> None:
    remedy = f"--model.schedule.{name} below {epochs:g}, the epochs of the run, or a higher --trainer.max_epochs"
    _require(value < epochs, name, f"{value:g}", remedy)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle: the rate rises to its peak and falls to almost nothing, while the momentum does the opposite.

    Source: Smith and Topin (2018), "Super-Convergence", section 3, and Smith (2018), "A disciplined approach to neural
    network hyper-parameters: Part 1", section 4; in two phases, as in `torch.optim.lr_scheduler.OneCycleLR`.

    Args:
        peak_epoch: epochs until the peak, which is `lr`; `peak_fraction` of the run if not given.
        peak_fraction: fraction of the run until the peak, between 0 and 1.
        div_factor: the run starts with the peak divided by this.
        lr_min: start with this rate instead; `found` takes it from the curve of the callback LRFinder.
        annihilation: end far below the initial rate; if false, end with the initial rate.
        final_div_factor: the annihilation ends with the initial rate divided by this.
        anneal: "cos" or "linear".
        cycle_momentum: change the momentum, too; if false, it stays that of the optimizer.
        base_momentum: momentum at the peak.
        max_momentum: momentum at both ends.
    """

    peak_epoch: float | None = None
    peak_fraction: float = 0.3
    div_factor: float = 25.0
    lr_min: float | Literal["found"] | None = None
    annihilation: bool = True
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        _require(self.peak_epoch is None or self.peak_epoch > 0, "peak_epoch", self.peak_epoch, "a number above 0")
        _require(0 < self.peak_fraction < 1, "peak_fraction", self.peak_fraction, "a number between 0 and 1")
        _require(self.div_factor >= 1, "div_factor", self.div_factor, "1 or more")
        number = self.lr_min in (None, "found") or (not isinstance(self.lr_min, str) and self.lr_min > 0)
        _require(number, "lr_min", self.lr_min, "a number above 0 or found")
        _require(self.final_div_factor >= 1, "final_div_factor", self.final_div_factor, "1 or more")
        _require(self.anneal in ("cos", "linear"), "anneal", self.anneal, "cos or linear")
        for name in ("base_momentum", "max_momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")

    @property
    def awaits_rate(self) -> bool:
        """See `Schedule.awaits_rate`."""
        return self.lr_min == "found"

    def check_length(self, epochs: float) -> None:
        """See `Schedule.check_length`."""
        _require_within("peak_epoch", self.peak_epoch or 0.0, epochs)

    def build(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, lr: float | None = None
    ) -> LRScheduler:
        """See `Schedule.build`."""
        self.check_length(total_steps / steps_per_epoch)
        cycle_momentum = self.cycle_momentum
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ConfigurationError(
                f"model.schedule.cycle_momentum: {type(optimizer).__name__} has no momentum to cycle, give false"
            )
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=self._rising_part(total_steps, steps_per_epoch),
            anneal_strategy=self.anneal,
            cycle_momentum=cycle_momentum,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
            div_factor=self._divisor(lr or optimizer.param_groups[0]["lr"]),
            final_div_factor=self.final_div_factor if self.annihilation else 1.0,
        )

    def _divisor(self, peak: float) -> float:
        """Returns the ratio of the peak to the initial rate."""
        if self.lr_min is None or isinstance(self.lr_min, str):  # LRFinder replaces `found` with a number later
            return self.div_factor
        _require(self.lr_min <= peak, "lr_min", self.lr_min, f"at most the peak, model.lr {peak:g}")
        return peak / self.lr_min

    def set_peak_momentum(self, optimizer: Optimizer) -> None:
        """See `Schedule.set_peak_momentum`."""
        for group in optimizer.param_groups if self.cycle_momentum else ():
            if "betas" in group:
                group["betas"] = (self.base_momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = self.base_momentum

    def _rising_part(self, total_steps: int, steps_per_epoch: int) -> float:
        rising = self.peak_fraction * total_steps
        if self.peak_epoch is not None:
            rising = self.peak_epoch * steps_per_epoch
        # Whole steps, or the peak would lie between two of them and never be reached. At least two, because torch
        # divides by their number less one; none in a run of up to two steps, in which none would be left for the fall.
        return max(round(rising), 2) / total_steps if total_steps > 2 else 0.0


@dataclass(frozen=True)
class _Factor(Schedule):
    """A schedule that multiplies the base rate by a function of the step, after a warm-up.

    Args:
        warmup_epochs: epochs of warm-up.
        warmup_factor: the first rate as a fraction of `lr`.
        warmup_shape: "linear" rises to `lr`, "constant" stays at the first rate until the end of the warm-up.
    """

    warmup_epochs: float = 0.0
    warmup_factor: float = 0.1
    warmup_shape: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        _require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        _require(0 < self.warmup_factor <= 1, "warmup_factor", self.warmup_factor, "a number above 0, at most 1")
        _require(self.warmup_shape in ("linear", "constant"), "warmup_shape", self.warmup_shape, "linear or constant")

    def check_length(self, epochs: float) -> None:
        """See `Schedule.check_length`."""
        _require_within("warmup_epochs", self.warmup_epochs, epochs)

    def build(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, lr: float | None = None
    ) -> LRScheduler:
        """See `Schedule.build`."""
        self.check_length(total_steps / steps_per_epoch)
        warmup = self.warmup_epochs * steps_per_epoch
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps, warmup))

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        """Returns the factor of the base rate in a step, counted from 0."""
        if step < warmup_steps:
            rise = step / warmup_steps if self.warmup_shape == "linear" else 0.0
            return self.warmup_factor + (1 - self.warmup_factor) * rise
        return self._after_warmup(step, total_steps, warmup_steps)

    @abstractmethod
    def _after_warmup(self, step: int, total_steps: int, warmup_steps: float) -> float: ...


@dataclass(frozen=True)
class Constant(_Factor):
    """A constant rate after the warm-up."""

    def _after_warmup(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(_Factor):
    """The rate is multiplied by `gamma` at each milestone.

    Source: He et al. (2015), "Deep Residual Learning for Image Recognition", section 4.2: divided by 10 at 32k and 48k
    of 64k iterations, with a constant warm-up at a tenth of the rate for 110 layers.

    Args:
        milestones: fractions of the run, between 0 and 1, at which the rate falls.
        gamma: factor of the rate at each milestone.
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "milestones", tuple(self.milestones))
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        _require(inside, "milestones", list(self.milestones), "parts of the run between 0 and 1")
        _require(0 < self.gamma <= 1, "gamma", self.gamma, "a number above 0, at most 1")

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule as a recipe names it, in primitives."""
        config = super().to_config()
        config["init_args"]["milestones"] = list(self.milestones)
        return config

    def _after_warmup(self, step: int, total_steps: int, warmup_steps: float) -> float:
        # rounded, because 0.07 of 100 steps is 7.000000000000001 in floating point, and 7 is meant
        passed = sum(step >= round(milestone * total_steps, 6) for milestone in self.milestones)
        return self.gamma**passed


@dataclass(frozen=True)
class Cosine(_Factor):
    """Half a cosine from the base rate down to a fraction of it.

    Source: Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5, without
    restarts.

    Args:
        final_factor: the last rate as a fraction of `lr`.
    """

    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.final_factor <= 1, "final_factor", self.final_factor, "a number from 0 to 1")

    def _after_warmup(self, step: int, total_steps: int, warmup_steps: float) -> float:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * progress)) / 2
