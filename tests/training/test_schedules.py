import dataclasses
import io
import math

import numpy as np
import pytest
import torch
import yaml
from torch.optim import SGD, Adagrad, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.schedules import Constant, Cosine, OneCycle, Schedule, Step

LR = 0.1

# every field differs from its default, so that a field that is lost on the way is noticed
UNUSUAL = [
    OneCycle(2.5, 0.4, 10.0, 0.02, False, 100.0, "linear", False, 0.8, 0.9),
    Step(0.5, 0.2, "constant", (0.3, 0.6, 0.9), 0.2),
    Cosine(1.5, 0.3, "constant", 0.05),
    Constant(2.0, 0.5, "constant"),
]
ALL = [OneCycle(), Step(), Cosine(), Constant()]


def optimizer(*rates: float, momentum: float = 0.9) -> SGD:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates or (LR,)]
    return SGD(groups, lr=1.0, momentum=momentum)


def walk(scheduler: LRScheduler, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The rates (steps, groups) and momenta (steps,) that each optimizer step uses."""
    rates, momenta = [], []
    for _ in range(steps):
        groups = scheduler.optimizer.param_groups
        rates.append([group["lr"] for group in groups])
        momenta.append(groups[0]["betas"][0] if "betas" in groups[0] else groups[0].get("momentum"))
        scheduler.optimizer.step()
        scheduler.step()
    return np.array(rates), np.array(momenta)


def run(schedule: Schedule, total: int, per_epoch: int = 10) -> np.ndarray:
    return walk(schedule.build(optimizer(), total, per_epoch), total)[0][:, 0]


# The step of He et al.


def he_et_al(total: int) -> np.ndarray:
    step = np.arange(total)
    return np.select([step < total // 2, step < total // 4 * 3], [0.1, 0.01], 0.001)


def test_the_step_schedule_is_that_of_he_et_al_over_a_whole_run():
    np.testing.assert_allclose(run(Step(), 640), he_et_al(640), rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)]
)
def test_the_rate_falls_exactly_at_32k_and_48k_of_64k_iterations(step, rate):
    assert LR * Step().factor(step, 64_000, 0) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_milestone_is_met_at_its_step_whatever_the_floating_point_says(percent):
    # 0.29 * 100 is 28.999999999999996, and 0.07 * 100 is 7.000000000000001
    schedule = Step(milestones=(percent / 100,))
    factors = [schedule.factor(step, 100, 0) for step in (percent - 1, percent)]
    assert factors == [1.0, 0.1]


def test_three_milestones_with_a_gamma_of_a_fifth():
    step = np.arange(200)
    passed = (step >= 60).astype(int) + (step >= 120) + (step >= 160)
    np.testing.assert_allclose(run(Step(milestones=(0.3, 0.6, 0.8), gamma=0.2), 200), 0.1 * 0.2**passed, rtol=1e-12)


# Warm-up.


def test_a_constant_warm_up_stays_at_a_hundredth_and_jumps_to_the_rate():
    expected = he_et_al(640)
    expected[:20] = 0.01
    rates = run(Step(warmup_epochs=2, warmup_factor=0.1, warmup_shape="constant"), 640)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("epochs", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("factor", [0.001, 0.1, 1.0])
def test_a_linear_warm_up_rises_by_the_same_amount_in_each_step(epochs, factor):
    warmup, step = epochs * 10, np.arange(50)
    expected = np.where(step < warmup, LR * (factor + (1 - factor) * step / warmup), LR)
    np.testing.assert_allclose(run(Constant(warmup_epochs=epochs, warmup_factor=factor), 50), expected, rtol=1e-12)


def test_a_constant_rate_is_constant():
    assert (run(Constant(), 30) == LR).all()


# The cosine of Loshchilov and Hutter.


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_cosine_is_equation_5(final):
    total, current = 80, np.arange(80)
    highest, lowest = LR, LR * final
    expected = lowest + 0.5 * (highest - lowest) * (1 + np.cos(np.pi * current / total))
    rates = run(Cosine(final_factor=final), total)
    np.testing.assert_allclose(rates, expected, rtol=1e-9, atol=1e-15)
    torchs = walk(CosineAnnealingLR(optimizer(), T_max=total, eta_min=lowest), total)[0][:, 0]
    np.testing.assert_allclose(rates, torchs, rtol=1e-9, atol=1e-15)


def test_the_cosine_begins_where_the_warm_up_ends():
    step = np.arange(60)
    cosine = 0.5 * LR * (1 + np.cos(np.pi * (step - 20) / 40))
    expected = np.where(step < 20, LR * (0.1 + 0.9 * step / 20), cosine)
    rates = run(Cosine(warmup_epochs=2), 60)
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert rates[20] == LR


# One cycle.


def between(start: float, end: float, part: np.ndarray, anneal: str) -> np.ndarray:
    part = (1 - np.cos(np.pi * part)) / 2 if anneal == "cos" else part
    return start + (end - start) * part


def one_cycle(first: float, peak: float, last: float, total: int, rising: float, anneal: str) -> np.ndarray:
    """Two phases that meet in the peak; it is the last step of the rise, which counts from 1."""
    step, top = np.arange(total), rising - 1
    up = between(first, peak, step / top, anneal)
    return np.where(step <= top, up, between(peak, last, (step - top) / (total - 1 - top), anneal))


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("peak", "rising"), [({"peak_epoch": 3}, 30), ({"peak_epoch": 2.5}, 25), ({}, 24)])
def test_one_cycle_rises_to_its_peak_and_falls_while_the_momentum_does_the_opposite(anneal, peak, rising):
    schedule = OneCycle(**peak, div_factor=10, final_div_factor=100, anneal=anneal)
    rates, momenta = walk(schedule.build(optimizer(), 80, 10), 80)
    expected = one_cycle(LR / 10, LR, LR / 1000, 80, rising, anneal)
    np.testing.assert_allclose(rates[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(momenta, one_cycle(0.95, 0.85, 0.95, 80, rising, anneal), rtol=1e-9)
    assert rates.argmax() == momenta.argmin() == rising - 1
    assert [rates[0, 0], rates.max(), rates[-1, 0]] == pytest.approx([0.01, 0.1, 0.0001])


@pytest.mark.parametrize("total", [3, 17, 43, 101, 390])
@pytest.mark.parametrize("peak", [{}, {"peak_fraction": 0.21}, {"peak_epoch": 1.37}])
def test_the_peak_is_reached_in_a_run_of_any_length(total, peak):
    rates = walk(OneCycle(**peak).build(optimizer(), total, max(1, total // 2)), total)[0][:, 0]
    assert rates.max() == pytest.approx(LR, rel=1e-15)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_is_that_of_torch(anneal):
    schedule = OneCycle(peak_epoch=5, anneal=anneal, base_momentum=0.8, max_momentum=0.9)
    ours = walk(schedule.build(optimizer(), 240, 10), 240)
    by_hand = OneCycleLR(
        optimizer(), LR, epochs=24, steps_per_epoch=10, pct_start=5 / 24, anneal_strategy=anneal,
        base_momentum=0.8, max_momentum=0.9,
    )  # fmt: skip
    for one, other in zip(ours, walk(by_hand, 240), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_one_cycle_can_leave_the_momentum_alone():
    cycled, left = (walk(OneCycle(cycle_momentum=c).build(optimizer(), 40, 10), 40) for c in (True, False))
    assert (left[1] == 0.9).all() and not (cycled[1] == 0.9).all()
    np.testing.assert_array_equal(left[0], cycled[0])


def test_one_cycle_changes_the_first_beta_of_adam():
    adam = Adam([torch.nn.Parameter(torch.ones(1))], lr=LR, betas=(0.9, 0.99))
    momenta = walk(OneCycle().build(adam, 40, 10), 40)[1]
    np.testing.assert_allclose(momenta, one_cycle(0.95, 0.85, 0.95, 40, 12, "cos"), rtol=1e-9)
    assert adam.param_groups[0]["betas"][1] == 0.99


def based(*rates: float) -> SGD:
    """An optimizer whose base rate is LR, as it is `model.lr` in a run; the groups may have others."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates or (LR,)]
    return SGD(groups, lr=LR, momentum=0.9)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("start", [0.001, 0.03, LR])
def test_one_cycle_starts_exactly_at_lr_min(anneal, start):
    schedule = OneCycle(lr_min=start, final_div_factor=50, anneal=anneal, div_factor=7)
    rates = walk(schedule.build(based(), 80, 10), 80)[0][:, 0]
    np.testing.assert_allclose(rates, one_cycle(start, LR, start / 50, 80, 24, anneal), rtol=1e-9)
    assert rates[0] == pytest.approx(start, rel=1e-15)


def test_lr_min_is_the_base_rate_s_and_the_groups_keep_their_ratio():
    rates = walk(OneCycle(lr_min=0.02).build(based(LR, 1.0), 40, 10), 40)[0]
    np.testing.assert_allclose(rates[:, 0], one_cycle(0.02, LR, 2e-6, 40, 12, "cos"), rtol=1e-9)
    np.testing.assert_allclose(rates[:, 1], one_cycle(0.2, 1.0, 2e-5, 40, 12, "cos"), rtol=1e-9)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("start", "first"), [({"lr_min": 0.02}, 0.02), ({"div_factor": 8}, LR / 8), ({}, LR / 25)])
def test_one_cycle_can_end_with_the_rate_that_it_starts_with(anneal, start, first):
    schedule = OneCycle(**start, annihilation=False, anneal=anneal)
    rates = walk(schedule.build(based(), 80, 10), 80)[0][:, 0]
    np.testing.assert_allclose(rates, one_cycle(first, LR, first, 80, 24, anneal), rtol=1e-9)
    assert rates[-1] == pytest.approx(rates[0], rel=1e-12)


def test_without_annihilation_the_momentum_cycles_as_with_it():
    ours, other = (walk(OneCycle(annihilation=a).build(optimizer(), 40, 10), 40)[1] for a in (False, True))
    np.testing.assert_array_equal(ours, other)


def test_a_start_that_is_still_to_be_found_is_that_of_the_divisor():
    np.testing.assert_array_equal(run(OneCycle(lr_min="found", div_factor=9), 40), run(OneCycle(div_factor=9), 40))


def test_a_start_that_is_still_to_be_found_survives_its_configuration():
    schedule = OneCycle(lr_min="found")
    assert Schedule.from_config(yaml.safe_load(yaml.safe_dump(schedule.to_config()))) == schedule


# The momentum at the peak, which a range test takes.


@pytest.mark.parametrize("steps", [40, 80])
def test_the_peak_momentum_is_the_one_at_the_highest_rate(steps):
    schedule, plain = OneCycle(base_momentum=0.7), optimizer()
    schedule.set_peak_momentum(plain)
    rates, momenta = walk(schedule.build(optimizer(), steps, 10), steps)
    assert plain.param_groups[0]["momentum"] == pytest.approx(momenta[rates[:, 0].argmax()], rel=1e-12)
    assert plain.param_groups[0]["lr"] == LR


def test_the_peak_momentum_is_that_of_all_groups():
    plain = optimizer(0.1, 0.2)
    OneCycle(base_momentum=0.7).set_peak_momentum(plain)
    assert [group["momentum"] for group in plain.param_groups] == [0.7, 0.7]


def test_the_peak_momentum_of_adam_is_its_first_beta():
    adam = Adam([torch.nn.Parameter(torch.ones(1))], lr=LR, betas=(0.9, 0.99))
    OneCycle(base_momentum=0.7).set_peak_momentum(adam)
    assert adam.param_groups[0]["betas"] == (0.7, 0.99)


@pytest.mark.parametrize(
    "schedule", [OneCycle(cycle_momentum=False, base_momentum=0.7), Step(), Cosine(), Constant()], ids=str
)
def test_a_schedule_that_does_not_cycle_leaves_the_momentum_alone(schedule):
    sgd, adam = optimizer(), Adam([torch.nn.Parameter(torch.ones(1))], betas=(0.9, 0.99))
    for each in (sgd, adam):
        schedule.set_peak_momentum(each)
    assert sgd.param_groups[0]["momentum"] == 0.9
    assert adam.param_groups[0]["betas"] == (0.9, 0.99)


def test_an_optimizer_without_momentum_gets_none():
    plain = adagrad()
    OneCycle().set_peak_momentum(plain)
    assert not {"momentum", "betas"} & plain.param_groups[0].keys()


# All of them.


@pytest.mark.parametrize("schedule", ALL + UNUSUAL, ids=str)
def test_groups_of_parameters_keep_their_ratio(schedule):
    rates = walk(schedule.build(optimizer(0.1, 0.02), 50, 10), 50)[0]
    np.testing.assert_allclose(rates[:, 0], 5 * rates[:, 1], rtol=1e-9)
    assert len(np.unique(rates[:, 0])) > 1 or isinstance(schedule, Constant)


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_work(schedule, total):
    rates = run(schedule, total, per_epoch=1)
    assert len(rates) == total and np.isfinite(rates).all() and (rates > 0).all() and (rates <= LR).all()


@pytest.mark.parametrize("schedule", [OneCycle(), OneCycle(peak_epoch=1)], ids=str)
def test_one_cycle_needs_three_steps_to_rise(schedule):
    assert run(schedule, 3, per_epoch=1).tolist() == pytest.approx([LR / 25, LR, LR / 25e4])
    assert run(schedule, 2, per_epoch=1).tolist() == pytest.approx([LR / 2, LR / 25e4], rel=1e-4)


@pytest.mark.parametrize("schedule", ALL + UNUSUAL, ids=str)
def test_a_run_that_is_stopped_in_the_middle_goes_on_identically(schedule):
    whole = walk(schedule.build(optimizer(), 60, 10), 60)
    first, second = (schedule.build(optimizer(), 60, 10) for _ in range(2))
    walk(first, 23)
    file = io.BytesIO()
    torch.save({"optimizer": first.optimizer.state_dict(), "scheduler": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["scheduler"])
    for rest, all_steps in zip(walk(second, 37), whole, strict=True):
        np.testing.assert_array_equal(rest, all_steps[23:])


@pytest.mark.parametrize("schedule", ALL + UNUSUAL, ids=str)
def test_a_schedule_survives_its_configuration(schedule):
    config = yaml.safe_load(yaml.safe_dump(schedule.to_config()))
    assert config["class_path"] == f"cifar_resnets.training.schedules.{type(schedule).__name__}"
    assert Schedule.from_config(config) == schedule


@pytest.mark.parametrize("schedule", UNUSUAL, ids=str)
def test_the_unusual_schedules_have_no_default_left(schedule):
    fields = dataclasses.fields(schedule)
    assert [field.name for field in fields if getattr(schedule, field.name) == field.default] == []


# What a user can get wrong.


@pytest.mark.parametrize(
    "path", ["os.system", "cifar_resnets.training.schedules._Factor", "torch.optim.lr_scheduler.StepLR", None]
)
def test_only_the_schedules_of_this_project_are_looked_up(path):
    with pytest.raises(ConfigurationError, match=r"OneCycle.*Step.*Cosine.*Constant") as error:
        Schedule.from_config({"class_path": path, "init_args": {}})
    assert repr(path) in str(error.value)


@pytest.mark.parametrize("schedule", [Step, Cosine, Constant])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_epochs", -1.0),
        ("warmup_epochs", math.nan),
        ("warmup_factor", 0.0),
        ("warmup_factor", 1.1),
        ("warmup_shape", "cubic"),
    ],
)
def test_a_warm_up_out_of_range_is_refused(schedule, name, value):
    with pytest.raises(ConfigurationError, match=rf"model\.schedule\.{name}: {value}"):
        schedule(**{name: value})


@pytest.mark.parametrize(
    ("schedule", "name", "value"),
    [
        (OneCycle, "peak_epoch", 0),
        (OneCycle, "peak_epoch", math.nan),
        (OneCycle, "peak_fraction", 0.0),
        (OneCycle, "peak_fraction", 1.0),
        (OneCycle, "div_factor", 0.5),
        (OneCycle, "lr_min", 0),
        (OneCycle, "lr_min", -1),
        (OneCycle, "lr_min", math.nan),
        (OneCycle, "lr_min", "x"),
        (OneCycle, "final_div_factor", 0.0),
        (OneCycle, "anneal", "cosine"),
        (OneCycle, "base_momentum", -0.1),
        (OneCycle, "base_momentum", 1.0),
        (OneCycle, "max_momentum", -0.1),
        (OneCycle, "max_momentum", 1.0),
        (Step, "milestones", (0.5, 1.0)),
        (Step, "milestones", (0.0,)),
        (Step, "milestones", (32_000, 48_000)),
        (Step, "gamma", 0.0),
        (Step, "gamma", 1.5),
        (Cosine, "final_factor", -0.1),
        (Cosine, "final_factor", 1.1),
    ],
)
def test_a_value_out_of_range_is_refused(schedule, name, value):
    shown = str(list(value) if isinstance(value, tuple) else value)
    with pytest.raises(ConfigurationError) as error:
        schedule(**{name: value})
    assert f"model.schedule.{name}: {shown} is not allowed, give " in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (OneCycle(peak_epoch=4), "peak_epoch"),
        (OneCycle(peak_epoch=7), "peak_epoch"),
        (Cosine(warmup_epochs=4), "warmup_epochs"),
        (Step(warmup_epochs=9), "warmup_epochs"),
    ],
)
def test_a_peak_or_a_warm_up_that_does_not_end_within_the_run_is_refused(schedule, name):
    line = (
        rf"{name}: \d.* give --model.schedule.{name} below 4, the epochs of the run, or a higher --trainer.max_epochs"
    )
    with pytest.raises(ConfigurationError, match=line):
        schedule.build(optimizer(), 40, 10)
    schedule.build(optimizer(), 100, 10)


@pytest.mark.parametrize("start", [0.11, 10.0])
def test_a_start_above_the_peak_is_refused(start):
    with pytest.raises(ConfigurationError, match=rf"model\.schedule\.lr_min: {start} .* the peak, model\.lr 0\.1$"):
        OneCycle(lr_min=start).build(based(), 40, 10)


def adagrad() -> Optimizer:
    return Adagrad([torch.nn.Parameter(torch.ones(1))], lr=LR)


def test_a_momentum_that_the_optimizer_has_not_cannot_be_cycled():
    with pytest.raises(ConfigurationError, match=r"schedule\.cycle_momentum: Adagrad"):
        OneCycle().build(adagrad(), 40, 10)
    rates = walk(OneCycle(cycle_momentum=False).build(adagrad(), 40, 10), 40)[0]
    np.testing.assert_allclose(rates[:, 0], one_cycle(0.004, 0.1, 4e-7, 40, 12, "cos"), rtol=1e-9)
