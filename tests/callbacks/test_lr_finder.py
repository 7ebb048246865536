"""LRFinder: a fit trains as if the rate that it finds had been given, and says what it found."""

from __future__ import annotations

import copy
import csv
import functools
import itertools
import math
import re
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finder_runs import (
    FOUND,
    Counting,
    Note,
    NotFinite,
    Rates,
    Spy,
    TwoRates,
    changed,
    digits,
    flat,
    foreign,
    forgetful,
    on_ranks,
    own_generator,
    perceptron,
    quick,
    small,
    trained,
    trainer,
)
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.errors import ConfigurationError, SearchError
from cifar_resnets.training.lr_search import Search
from cifar_resnets.training.schedules import Constant, Cosine, OneCycle

Finder = functools.partial(LRFinder, num_steps=40, min_lr=1e-3)
Counted = functools.partial(Counting, num_steps=40, min_lr=1e-3)


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


# Nothing else changes.

RESIDUAL = {"network_args": {"depths": [2], "widths": [4], "stem_width": 4, "drop_path_rate": 0.2, "drop_rate": 0.1}}
FLIPPED = functools.partial(digits, augment=Augmentation())


@pytest.mark.parametrize(
    ("arguments", "make", "changes"),
    [
        ({}, digits, {}),
        ({}, FLIPPED, {"precision": "bf16-mixed"}),
        ({}, FLIPPED, {"accumulate_grad_batches": 2}),
        ({"optimizer": "AdamW"}, FLIPPED, {"gradient_clip_val": 0.5, "max_steps": 7}),
        ({"optimizer": "lamb"}, functools.partial(digits, augment=Augmentation(mixup_alpha=1.0)), {}),
        ({}, functools.partial(foreign, shuffle=True), {}),
        ({}, own_generator, {}),
        (RESIDUAL, FLIPPED, {"max_epochs": 1}),
    ],
    ids=["dropout", "bf16", "accumulated", "adamw", "lamb", "loader", "generator", "drop path"],
)
def test_a_fit_is_that_of_the_rates_typed_by_hand(tmp_path, arguments, make, changes):
    build = functools.partial(small, network=None if arguments is RESIDUAL else forgetful())
    module = build(schedule=FOUND, **arguments)
    finder = LRFinder(max_lr=1.0 if "optimizer" in arguments else 10.0, num_steps=100 if arguments is RESIDUAL else 60)
    searched = trained(tmp_path / "a", copy.deepcopy(module), make(), finder, **changes)
    lr, lr_min = searched["/hyper_parameters/lr"], searched["/hyper_parameters/schedule/init_args/lr_min"]
    assert lr != 0.1 and lr_min < lr
    typed = build(schedule=OneCycle(lr_min=lr_min), lr=lr, **arguments)
    typed.load_state_dict(module.state_dict())
    assert changed(trained(tmp_path / "b", typed, make(), **changes), searched) == []
    assert any("momentum_buffer" in name or "exp_avg" in name for name in searched)


def test_nothing_is_called_logged_or_validated(tmp_path):
    spies, module = (Spy(), Spy()), quick()
    loud = {"limit_val_batches": 1.0, "num_sanity_val_steps": 2, "log_every_n_steps": 1}
    trained(tmp_path / "a", module, digits(), Finder(), spies[0], logger=spies[0], **loud)
    typed = quick(lr=module.hparams["lr"], schedule=module.schedule)
    trained(tmp_path / "b", typed, digits(), spies[1], logger=spies[1], **loud)
    assert spies[0].seen == spies[1].seen
    assert spies[0].seen.count("on_train_batch_end") == 10 and "on_validation_end" in spies[0].seen


# When it searches.


def test_a_fit_searches_once_before_its_first_step_and_a_resumed_fit_never(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    finder, module, resumed, late = Counted(), quick(), quick(lr=0.7), Counted()
    whole = trained(tmp_path / "a", module, digits(), finder, saver, enable_checkpointing=True, max_epochs=4)
    assert [step for step, _ in finder.searches] == [0]
    run = trainer(late, max_epochs=4)
    run.fit(resumed, digits(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    run.save_checkpoint(tmp_path / "b")
    assert not hasattr(late, "searches") and run.global_step == 20
    assert (dict(resumed.hparams), resumed.schedule) == (dict(module.hparams), module.schedule)
    again = flat(torch.load(tmp_path / "b", weights_only=True))
    assert {name.split("/")[1] for name in changed({k: whole[k] for k in again}, again)} == set()


def test_nothing_is_searched_without_a_fit_or_in_a_dry_run():
    finder, module = Counted(), quick()
    run = trainer(finder, limit_val_batches=1.0)
    run.validate(module, digits(), verbose=False)
    run.test(module, digits(), verbose=False)
    trainer(finder, fast_dev_run=2).fit(module, digits())
    assert not hasattr(finder, "searches")
    assert (module.hparams["lr"], module.schedule) == (0.1, FOUND)


# What is done with the rate.


@pytest.mark.parametrize("schedule", [OneCycle(), FOUND, Constant(), Cosine(warmup_epochs=1)], ids=str)
@pytest.mark.parametrize("method", ["valley", "steep"])
def test_a_schedule_peaks_at_the_suggestion(schedule, method):
    module, finder, rates = quick(schedule=schedule), Counted(method=method), Rates()
    trainer(finder, rates).fit(module, digits())
    [(_, search)] = finder.searches
    assert max(rates.seen) == module.hparams["lr"] == search.suggestion(method).value != 0.1
    if schedule is FOUND:
        assert rates.seen[0] == pytest.approx(search.start, rel=1e-9) and module.schedule.lr_min == search.start


def test_lightnings_own_finder_leaves_a_one_cycle_at_its_old_peak():
    """Why LRFinder exists: Lightning's sets the optimizer's rate, which OneCycleLR overwrites in the next step."""
    theirs = LearningRateFinder(min_lr=1e-3, max_lr=10, num_training_steps=60)
    peaks, suggestions = [], []
    for finder in (theirs, LRFinder(min_lr=1e-3, max_lr=10, num_steps=60)):
        module, rates = quick(schedule=OneCycle(), lr=0.7), Rates()
        trainer(finder, rates, max_epochs=12).fit(module, digits())  # Lightning's ends with the fit's last epoch
        peaks.append(max(rates.seen))
        suggestions.append(module.hparams["lr"])
    assert suggestions[0] == theirs.optimal_lr.suggestion()
    assert peaks == [0.7, suggestions[1]]
    assert 0.7 not in suggestions


@pytest.mark.parametrize("schedule", [OneCycle(), FOUND, Constant()], ids=str)
def test_groups_keep_the_ratio_of_their_rates(schedule):
    module = small(TwoRates, network=perceptron(), schedule=schedule)
    trainer(Finder(max_lr=1.0)).fit(module, digits())
    rates = np.array(module.rates)
    assert max(rates[:, 0]) == module.hparams["lr"] != 0.1
    np.testing.assert_allclose(rates[:, 1], 10 * rates[:, 0], rtol=1e-9)
    if schedule is FOUND:
        assert rates[0, 0] == pytest.approx(module.schedule.lr_min)


def noted(run, module) -> tuple[float, float]:
    return module.hparams["lr"], module.schedule.lr_min


@pytest.mark.parametrize("logger", [None, CSVLogger, TensorBoardLogger])
@pytest.mark.process
def test_two_ranks_agree_with_one(tmp_path, logger):
    on = {"logger": logger(tmp_path)} if logger else {}
    [one], both = (on_ranks(n, quick(), digits(), Note(tmp_path, noted), Finder(), **on) for n in (1, 2))
    assert both[0] == both[1]
    np.testing.assert_allclose(both[0], one, rtol=0.05)


# What is found, and what is not.


def console(capsys, module, *callbacks, data=None, **changes) -> str:
    """What a fit prints."""
    capsys.readouterr()
    trainer(*callbacks, **{"max_epochs": 1} | changes).fit(module, data or digits())
    return capsys.readouterr().out


def test_the_line_of_one_run(capsys):
    module, half = quick(schedule=OneCycle()), quick()
    line = console(capsys, module, LRFinder(min_lr=1e-3))
    lr = module.hparams["lr"]
    assert line == f"learning rate: {lr:#.3g} (valley of 100 steps)\n"
    halved = console(capsys, half, LRFinder(min_lr=1e-3, scale=0.5))
    assert half.hparams["lr"] == pytest.approx(lr / 2, rel=1e-5)
    start = half.schedule.lr_min
    assert re.fullmatch(rf"learning rate: {lr / 2:.3g}\d* \(0\.5 x valley of 100 steps\), from {start:#.3g}\n", halved)


def test_several_runs_give_their_geometric_mean(tmp_path, capsys):
    module, finder = quick(schedule=OneCycle()), Counted(num_runs=3)
    line = console(capsys, module, finder, logger=CSVLogger(tmp_path, name="", version=""))
    [(_, search)] = finder.searches
    single = [Search(search.rates, [losses]).suggestion("valley").value for losses in search.runs]
    lr = module.hparams["lr"]
    assert lr == pytest.approx(statistics.geometric_mean(single), rel=0.005) and len(set(single)) == 3
    spread = f"{min(single):.2g}-{max(single):.2g} over 3 runs"
    assert line == f"learning rate: {lr:#.3g} (valley of 40 steps, {spread})\n"


def test_bf16_finds_about_the_same():
    full, half = quick(), quick()
    trainer(Finder()).fit(full, digits())
    trainer(Finder(), precision="bf16-mixed").fit(half, digits())
    assert half.hparams["lr"] == pytest.approx(full.hparams["lr"], rel=0.1)


FLAT = functools.partial(LRFinder, min_lr=1e-9, max_lr=1e-7)


@pytest.mark.parametrize(("cls", "make"), [(ImageClassifier, FLAT), (NotFinite, LRFinder)], ids=["flat", "nan"])
def test_nothing_found_keeps_the_configured_rate(tmp_path, capsys, cls, make):
    module, rates = quick(cls=cls, lr=0.05), Rates()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    out = console(capsys, module, make(), rates, logger=logger)
    assert out.startswith("learning rate: 0.05 as configured") and out.count("\n") == 1
    assert (max(rates.seen), rates.seen[0]) == (0.05, pytest.approx(0.05 / 25))
    assert module.schedule == OneCycle()
    assert (tmp_path / "lr_finder.csv").exists()


@pytest.mark.parametrize(("cls", "make"), [(ImageClassifier, FLAT), (NotFinite, LRFinder)], ids=["flat", "nan"])
def test_nothing_found_can_end_the_run(cls, make):
    run = trainer(make(on_failure="error"))
    with pytest.raises(SearchError, match=r"LRFinder: the loss .* try") as caught:
        run.fit(quick(cls=cls), digits())
    assert caught.value.exit_status == 5 and run.global_step == 0


def test_the_curve_is_beside_the_logs_and_in_tensorboard(tmp_path):
    module, finder = quick(), Counted(num_runs=2)
    saved = trained(tmp_path / "a", module, digits(), finder, logger=TensorBoardLogger(tmp_path, name="", version=""))
    with (tmp_path / "lr_finder.csv").open() as file:
        rows = list(csv.DictReader(file))
    [(_, search)] = finder.searches
    assert list(rows[0]) == ["run", "step", "lr", "loss", "smoothed_loss"]
    for run, losses in enumerate(search.runs):
        own = [(float(row["lr"]), float(row["loss"])) for row in rows if row["run"] == str(run)]
        assert own == list(zip(search.rates, losses, strict=False))
    [image] = EventAccumulator(str(tmp_path)).Reload().Images("lr_finder")
    assert (image.step, min(image.width, image.height) > 300) == (0, True)
    assert saved["/hyper_parameters/lr"] == search.suggestion("valley").value
    assert saved["/hyper_parameters/schedule/init_args/lr_min"] == search.start


# What a user can get wrong.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["min_lr"], [0.0, -1.0, 10.0, math.nan]),
        *itertools.product(["max_lr"], [0.0, 1e-4, math.nan, math.inf]),
        *itertools.product(["num_steps"], [0, 19]),
        *itertools.product(["num_runs"], [0, -1]),
        *itertools.product(["scale"], [0.0, -1.0, math.nan, math.inf]),
        *itertools.product(["divergence"], [1.0, 0.5, math.nan]),
        *itertools.product(["method", "spacing", "on_failure"], ["other"]),
    ],
)
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=rf"^LRFinder\.(min_lr, )?{name}\b.* is not allowed, give"):
        LRFinder(**{name: value})


@pytest.mark.parametrize(
    ("finders", "schedule", "message"),
    [
        ([Finder(), Finder()], OneCycle(), r"trainer\.callbacks: LRFinder is there twice"),
        ([], FOUND, r"model\.schedule\.lr_min: found takes .*LRFinder"),
        ([Finder()], OneCycle(lr_min=0.6), r"model\.schedule\.lr_min: 0\.6 is not allowed, give at most the peak"),
    ],
    ids=["two finders", "none", "above the peak"],
)
def test_what_does_not_fit_is_refused_before_the_first_step(finders, schedule, message):
    run = trainer(*finders)
    with pytest.raises(ConfigurationError, match=message):
        run.fit(quick(schedule=schedule, lr=0.7), digits())
    assert run.global_step == 0


def test_a_strategy_that_splits_the_network_is_refused():
    run = SimpleNamespace(callbacks=[finder := Finder()], strategy=object())
    with pytest.raises(ConfigurationError, match=r"trainer\.strategy: LRFinder does not work with object"):
        finder.setup(run, quick(), "fit")
