import csv
import functools
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from scipy.special import log_softmax
from support import Synchronisations, needs_compiler, needs_gpu
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError, DivergenceError
from cifar_resnets.models.init import whitening_filters
from cifar_resnets.models.registry import create_network
from cifar_resnets.training.run_length import run_length
from cifar_resnets.training.schedules import Constant, Cosine, OneCycle, Schedule, Step

NAMES = list("abcdefg")
TINY = {"depths": (1, 1, 1), "widths": (4, 8, 8), "stem_width": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


class Blobs(ImageDataModule):
    """Seven classes of small images that can be told apart: each has its own pattern under some noise."""

    def __init__(self, per_class: int = 8, **kwargs) -> None:
        super().__init__(**{"batch_size": 8, "eval_batch_size": 8, "augment": None} | kwargs)
        self.per_class = per_class

    def source_classes(self) -> list[str]:
        return NAMES

    def load(self, split):
        rng = np.random.default_rng(0)
        patterns = rng.integers(60, 196, (len(NAMES), 8, 8, 3))
        labels = np.tile(np.arange(len(NAMES)), self.per_class)
        noise = np.random.default_rng([split == "test", 1]).integers(-60, 60, (len(labels), 8, 8, 3))
        return (patterns[labels] + noise).astype(np.uint8), labels


def tiny(**changes) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(NAMES, **{"network_args": TINY} | changes)


def trainer(**changes) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return pl.Trainer(**quiet | changes)


def loader(num: int, batch_size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(num) % len(NAMES)), batch_size=batch_size)


def batch(num: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return next(iter(loader(num, num)))


# Learning.


def test_a_batch_can_be_overfitted():
    model, run = tiny(lr=0.1, weight_decay=0.0, schedule=Constant()), trainer(max_epochs=40, limit_val_batches=0)
    run.fit(model, loader(16, 16))
    assert run.callback_metrics["train/loss"] < 0.05
    assert run.callback_metrics["train/acc"] == 1.0


def test_a_network_of_timms_trains():
    model = ImageClassifier(NAMES, network="test_resnet", lr=0.01)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(model, loader(8))
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert any(not torch.equal(p, before[name]) for name, p in model.network.named_parameters())


@pytest.mark.parametrize("augment", [Augmentation(mixup_alpha=1.0), Augmentation(cutmix_alpha=1.0)])
def test_probabilities_do_as_labels(augment):
    run = trainer(max_epochs=1, limit_val_batches=0)
    run.fit(tiny(label_smoothing=0.1), Blobs(augment=augment, batch_size=16))
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert 0 <= run.callback_metrics["train/acc"] <= 1


# The loss.


def smoothed(labels: np.ndarray, smoothing: float) -> np.ndarray:
    """Szegedy et al. (2016), section 7: (1 - e) of the label, e over all classes."""
    hard = np.eye(len(NAMES))[labels] if labels.ndim == 1 else labels
    return (1 - smoothing) * hard + smoothing / len(NAMES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing, mixed):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, len(NAMES)))
    labels = rng.dirichlet(np.ones(len(NAMES)), size=9) if mixed else rng.integers(len(NAMES), size=9)
    expected = -(smoothed(labels, smoothing) * log_softmax(logits, axis=1)).sum(axis=1).mean()
    found = tiny(label_smoothing=smoothing).loss(torch.tensor(logits), torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("source", ["images", "loader"])
def test_a_last_smaller_group_of_accumulated_batches_counts_in_full(source):
    weights = []
    for group in (1, 5):  # a step of one batch, alone or as a group that is not complete
        model, run = tiny(), trainer(max_epochs=1, limit_train_batches=1, accumulate_grad_batches=group)
        run.fit(model, **{"datamodule": Blobs()} if source == "images" else {"train_dataloaders": loader(40)})
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], torch.cat([parameter.flatten() for parameter in tiny().parameters()]))


def test_the_training_figures_are_means_over_images_not_over_batches():
    model = tiny(lr=1e-12, label_smoothing=0.2)
    run = trainer(max_epochs=1, limit_val_batches=0)
    run.fit(model, loader(11))  # batches of 8 and of 3
    model.train()
    with torch.no_grad():
        outputs = [(model(images), labels) for images, labels in loader(11)]
    losses = torch.cat([F.cross_entropy(x, y, label_smoothing=0.2, reduction="none") for x, y in outputs])
    right = torch.cat([x.argmax(dim=1) == y for x, y in outputs])
    assert run.callback_metrics["train/loss"].item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert run.callback_metrics["train/acc"].item() == pytest.approx(right.float().mean().item(), rel=1e-6)
    labels = torch.cat([y for _, y in outputs])
    of_classes = [right[labels == label].float().mean().item() for label in range(len(NAMES))]
    logged = [run.callback_metrics[f"train_class_acc/{name}"].item() for name in NAMES]
    assert logged == pytest.approx(of_classes, rel=1e-6, nan_ok=True)


# What the weights start from.


def test_a_fit_whitens_the_training_images_and_leaves_the_layer_so():
    model, data = tiny(init=["whiten"]), Blobs()
    trainer(max_epochs=1).fit(model, data)
    images, _ = data.load("train")
    mean, std = (np.array(values) for values in (data.mean, data.std))
    normalised = torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2)
    kept = data.sample(10**6)
    assert len(kept) == 49  # what the validation leaves
    assert all(any(torch.allclose(image.double(), other, atol=1e-5) for other in normalised) for image in kept)
    weight = model.network.conv1.weight
    expected = whitening_filters(kept, (3, 3), len(weight) // 2, eps=5e-4).float()
    torch.testing.assert_close(weight.detach(), torch.cat([expected, -expected]), atol=1e-5, rtol=1e-5)
    assert not weight.requires_grad


def test_some_images_are_spread_over_all():
    data = Blobs()
    data.setup("fit")
    every, few = data.sample(49), data.sample(4)
    assert torch.equal(few, every[[0, 16, 32, 48]])


def test_what_cannot_be_whitened_is_refused():
    with pytest.raises(ConfigurationError, match=r"^model\.init: whiten is not allowed, give dirac alone, or an Image"):
        trainer(max_epochs=1).fit(tiny(init=["whiten"]), loader(8))
    with pytest.raises(ConfigurationError, match=r"^model\.init: dirac would change model\.weights"):
        tiny(init=["dirac"], weights="a.pt")


def test_identities_are_the_first_weights():
    conv = tiny(init=["dirac"]).network.layer1[0].conv1
    x = torch.randn(1, conv.in_channels, 5, 5)
    torch.testing.assert_close(conv(x), x)


# What is logged.

SCALARS = {"train/loss", "train/acc", "lr", "momentum", "val/loss", "val/acc", "val/acc_top5"}
SCALARS |= {"val/acc_balanced", "val/f1_macro"}
CLASS_SCALARS = {f"{stage}_class_acc/{name}" for stage in ("train", "val") for name in NAMES}


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def column(logger: CSVLogger, tag: str) -> list[float]:
    return [float(row[tag]) for row in rows(logger) if row[tag]]


def test_every_figure_is_logged_once_an_epoch_under_its_tag(tmp_path):
    logger = CSVLogger(tmp_path)
    run = trainer(max_epochs=3, logger=logger, num_sanity_val_steps=2)
    model, data = tiny(), Blobs()
    run.fit(model, data)
    fitted = SCALARS | CLASS_SCALARS
    assert set(rows(logger)[0]) - {"epoch", "step"} == fitted
    assert {tag: len(column(logger, tag)) for tag in fitted} == dict.fromkeys(fitted, 3)
    run.test(model, data, verbose=False)
    tested = {"test/loss", "test/acc", "test/acc_top5", "test/acc_balanced", "test/f1_macro"}
    tested |= {f"test_class_acc/{name}" for name in NAMES}
    assert {tag: len(column(logger, tag)) for tag in tested} == dict.fromkeys(tested, 1)


def test_tensorboard_shows_each_tag_with_a_point_an_epoch(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    trainer(max_epochs=2, logger=logger).fit(tiny(), Blobs())
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == SCALARS | CLASS_SCALARS | {"epoch"}
    assert len(events.Scalars("train/loss")) == len(events.Scalars("val/acc")) == 2


def test_the_rate_and_the_momentum_are_those_of_the_epochs_last_step(tmp_path):
    logger = CSVLogger(tmp_path)
    schedule = OneCycle(peak_epoch=2, anneal="linear", div_factor=10, final_div_factor=10)
    # 7 of 56 images validate, 49 make 6 batches of 8: an epoch has 6 steps, the run 24
    trainer(max_epochs=4, logger=logger).fit(tiny(lr=0.1, schedule=schedule), Blobs())
    last = np.array([5, 11, 17, 23])
    rates = np.where(last <= 11, 0.01 + 0.09 * last / 11, 0.1 + (0.001 - 0.1) * (last - 11) / 12)
    momenta = np.where(last <= 11, 0.95 - 0.1 * last / 11, 0.85 + 0.1 * (last - 11) / 12)
    np.testing.assert_allclose(column(logger, "lr"), rates, rtol=1e-5)
    np.testing.assert_allclose(column(logger, "momentum"), momenta, rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "momentum"), [("AdamW", 0.9), ("Adagrad", None), ("lamb", 0.9)])
def test_the_momentum_is_the_first_beta_or_absent(optimizer, momentum):
    run = trainer(max_epochs=1, limit_val_batches=0)
    run.fit(tiny(optimizer=optimizer, schedule=Constant()), loader(8))
    found = run.callback_metrics.get("momentum")
    assert found is None if momentum is None else found.item() == pytest.approx(momentum)


# Evaluation.


def reference(model: ImageClassifier, data: Blobs) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the test images, all at once, in the simplest words."""
    images, labels = data.load("test")
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (data.mean, data.std))
    pixels = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    model.eval()
    with torch.no_grad():
        return model(pixels), torch.from_numpy(labels)


def test_the_test_figures_are_those_of_the_network_in_evaluation_mode():
    model, data, run = tiny(), Blobs(), trainer(max_epochs=2)
    run.fit(model, data)
    statistics = {name: value.clone() for name, value in model.network.named_buffers()}
    model.train()
    (figures,) = run.test(model, data, verbose=False)
    assert all(torch.equal(value, statistics[name]) for name, value in model.network.named_buffers())
    logits, labels = reference(model, data)
    assert figures["test/acc"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert figures["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert model.evaluations["test"].confusion.sum() == len(labels) == 56


def test_predictions_are_probabilities_of_the_test_images():
    model, data, run = tiny(), Blobs(), trainer(max_epochs=1)
    run.fit(model, data)
    predicted = torch.cat(run.predict(model, data))
    torch.testing.assert_close(predicted, reference(model, data)[0].softmax(dim=1), rtol=1e-4, atol=1e-6)


def test_a_network_can_be_validated_before_it_is_fitted_and_tested_after():
    model, data, run = tiny(), Blobs(), trainer(max_epochs=1)
    for _ in range(2):
        run.validate(model, data, verbose=False)
        run.test(model, data, verbose=False)
    run.fit(model, data)
    assert model.evaluations["val"].confusion.sum() == 7


# The length of a run.


class Lengths(pl.Callback):
    def on_train_start(self, trainer, pl_module) -> None:
        self.ours, self.lightnings = run_length(trainer), trainer.estimated_stepping_batches


# of 49 images an epoch has 6 batches of 8
@pytest.mark.parametrize(
    ("arguments", "total", "per_epoch"),
    [
        ({"max_epochs": 2}, 12, 6),
        ({"max_steps": 5}, 5, 6),
        ({"max_steps": 7, "max_epochs": 9}, 7, 6),
        ({"max_steps": 700, "max_epochs": 1}, 6, 6),
        ({"max_steps": 8, "max_epochs": -1}, 8, 6),
        ({"max_epochs": 2, "limit_train_batches": 4}, 8, 4),
        ({"max_epochs": 1, "limit_train_batches": 400}, 6, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 6, 3),
        ({"max_epochs": 2, "limit_train_batches": 0.4}, 4, 2),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4, 2),
        ({"max_epochs": 1, "accumulate_grad_batches": 40}, 1, 1),
        ({"max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": 5}, 6, 3),
        ({"max_epochs": 2, "overfit_batches": 3}, 6, 3),
        ({"fast_dev_run": 2}, 2, 2),
    ],
)
@pytest.mark.parametrize("source", ["data module", "loader"])
def test_the_length_of_a_run_is_known_before_its_first_step(arguments, total, per_epoch, source):
    lengths, model = Lengths(), tiny(schedule=Constant())
    run = trainer(callbacks=[lengths], limit_val_batches=0, **arguments)
    run.fit(model, Blobs()) if source == "data module" else run.fit(model, loader(48))
    assert lengths.ours == (total, per_epoch)
    assert lengths.lightnings == total == run.global_step


class Stream(IterableDataset):
    def __iter__(self):
        images, labels = batch(64)
        yield from zip(images, labels, strict=True)


def test_a_stream_is_one_epoch():
    lengths = Lengths()
    run = trainer(callbacks=[lengths], max_steps=3, limit_val_batches=0)
    run.fit(tiny(), DataLoader(Stream(), batch_size=8))
    assert lengths.ours == (3, 3) and run.global_step == 3


@pytest.mark.parametrize("source", [Blobs, functools.partial(loader, 16), lambda: DataLoader(Stream(), batch_size=8)])
def test_a_run_without_an_end_has_no_schedule(source):
    with pytest.raises(ConfigurationError, match=r"max_epochs or max_steps"):
        trainer(max_epochs=-1, limit_val_batches=0).fit(tiny(), source())


# Checkpoints.


@pytest.mark.parametrize(
    "schedule", [OneCycle(peak_epoch=1), Step(milestones=(0.5,)), Cosine(0.5), Constant()], ids=str
)
def test_a_checkpoint_stands_alone(tmp_path, schedule):
    data, run = Blobs(classes=NAMES[::-1]), trainer(max_epochs=2)
    model = ImageClassifier(data.class_names, network_args=TINY, schedule=schedule, label_smoothing=0.1)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    described = checkpoint["data"]["init_args"]
    assert described["classes"] == checkpoint["hyper_parameters"]["class_names"] == NAMES[::-1]
    assert (described["mean"], described["std"]) == (data.mean, data.std) and len(data.mean) == 3
    assert checkpoint["data"]["class_path"].endswith("Blobs")
    assert Schedule.from_config(checkpoint["hyper_parameters"]["schedule"]) == schedule


@pytest.mark.parametrize("schedule", [OneCycle(peak_epoch=1), Step(milestones=(0.5,)), Cosine(0.5), None], ids=str)
def test_a_network_is_loaded_as_it_was_saved(tmp_path, schedule):
    model, run = tiny(schedule=schedule, optimizer="AdamW", label_smoothing=0.2), trainer(max_epochs=2)
    run.fit(model, Blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    images = batch()[0]
    model.eval(), loaded.eval()
    assert torch.equal(loaded(images), model(images))
    assert loaded.schedule == model.schedule == (schedule or Cosine())
    assert dict(loaded.hparams) == dict(model.hparams)
    assert (loaded.label_smoothing, loaded.class_names) == (0.2, NAMES)


GIVEN = {
    "class_names": tuple(NAMES),
    "network": "cifar_resnet20",
    "network_args": TINY,
    "init": ["dirac"],
    "freeze": ["stem"],
    "unfreeze_epoch": 2,
    "label_smoothing": 0.1,
    "class_weights": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    "optimizer": "AdamW",
    "lr": 0.2,
    "weight_decay": 0.0,
    "decay_norm_and_bias": False,
    "norm_bias_scale": 2.0,
    "layer_decay": 0.5,
    "optimizer_args": {"eps": 1e-6},
    "schedule": Step(milestones=(0.5,)),
    "channels_last": False,
    "compile": "default",
    "fast": True,
    "tta": ("mirror",),
}
DEFAULTS = {
    "class_names": NAMES,
    "network": "cifar_resnet20",
    "network_args": {},
    "init": [],
    "freeze": None,
    "unfreeze_epoch": None,
    "label_smoothing": 0.0,
    "class_weights": None,
    "optimizer": "SGD",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "decay_norm_and_bias": True,
    "norm_bias_scale": 1.0,
    "layer_decay": 1.0,
    "optimizer_args": {},
    "schedule": Cosine().to_config(),
    "channels_last": True,
    "compile": None,
    "fast": False,
    "tta": [],
}


class Scaled(ImageClassifier):
    """A subclass with an argument of its own, which a checkpoint does not hold."""

    def __init__(self, *args, factor: float = 2.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.factor = factor


@pytest.mark.parametrize("cls", [ImageClassifier, Scaled])
def test_the_hyperparameters_are_the_arguments_as_primitives(cls):
    primitives = {"class_names": NAMES, "schedule": Step(milestones=(0.5,)).to_config(), "tta": ["mirror"]}
    assert list(cls(**GIVEN).hparams.items()) == list((GIVEN | primitives).items())
    assert list(cls(NAMES).hparams.items()) == list(DEFAULTS.items())


def test_rates_that_were_found_are_hyperparameters_beside_those_that_were_given():
    model = tiny(schedule=OneCycle(lr_min="found"))
    model.set_rates(0.3, 0.01)
    then, now = model.hparams_initial, model.hparams
    assert (then["lr"], then["schedule"]["init_args"]["lr_min"]) == (0.1, "found")
    assert (now["lr"], now["schedule"]["init_args"]["lr_min"]) == (0.3, 0.01)
    assert model.schedule == OneCycle(lr_min=0.01)
    model.set_rates(0.2, 0.02)  # found once
    assert (model.hparams["lr"], model.schedule.lr_min) == (0.2, 0.01)


def test_a_run_that_is_resumed_goes_on_with_its_schedule(tmp_path):
    logger, schedule = CSVLogger(tmp_path), OneCycle(peak_epoch=2)
    whole = tiny(schedule=schedule)
    trainer(max_epochs=4, logger=logger).fit(whole, Blobs())
    half, saver = tiny(schedule=schedule), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=4, callbacks=[saver], enable_checkpointing=True).fit(half, Blobs())
    resumed = CSVLogger(tmp_path, name="resumed")
    again = tiny(schedule=schedule)
    trainer(max_epochs=4, logger=resumed).fit(again, Blobs(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert column(resumed, "lr") == column(logger, "lr")[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


# Divergence.


class DivergesInEpochOne(ImageClassifier):
    def loss(self, logits, labels):
        return super().loss(logits, labels) * (math.nan if self.current_epoch == 1 else 1.0)


class DivergesInTheLastStep(ImageClassifier):
    """Whose weights, not whose training loss, are no longer finite at the end of the second epoch."""

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if self.current_epoch == 1 and self.trainer.is_last_batch:
            self.network.conv1.weight.data.fill_(math.nan)


@pytest.mark.parametrize(
    ("cls", "validation", "what"),
    [
        (DivergesInEpochOne, True, "training loss"),
        (DivergesInEpochOne, False, "training loss"),
        (DivergesInTheLastStep, True, "weights"),
        (DivergesInTheLastStep, False, "weights"),
    ],
)
def test_a_run_that_diverges_stops_and_leaves_the_last_checkpoint_alone(tmp_path, cls, validation, what):
    model = cls(NAMES, network_args=TINY, lr=0.125, schedule=Constant())
    saver = ModelCheckpoint(tmp_path, filename="best", save_last=True, enable_version_counter=False)
    limit = {} if validation else {"limit_val_batches": 0}
    run = trainer(max_epochs=3, callbacks=[saver], enable_checkpointing=True, **limit)
    with pytest.raises(DivergenceError, match=rf"{what} became infinite or NaN in epoch 2, at a .* of 0\.125\b"):
        run.fit(model, Blobs())
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (last["epoch"], run.current_epoch) == (0, 1)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_network_that_is_not_finite_can_still_be_tested():
    model, run = tiny(), trainer()
    torch.nn.init.constant_(model.network.conv1.weight, math.nan)
    (figures,) = run.validate(model, Blobs(), verbose=False)
    assert math.isnan(figures["val/loss"])


class InfiniteBeforeTraining(ImageClassifier):
    """As a very deep network is whose batch norms have seen nothing yet."""

    def forward(self, images):
        logits = super().forward(images)
        return logits if self.training or self.global_step else logits * math.inf


def test_a_network_may_overflow_before_its_first_step():
    run = trainer(max_epochs=1, num_sanity_val_steps=2)
    run.fit(InfiniteBeforeTraining(NAMES, network_args=TINY, schedule=Constant()), Blobs())
    assert run.global_step > 0


# What a step costs.


class Watch(pl.Callback):
    """Watches each training batch from its first hook to its last: loss, metrics, gradients, optimizer, schedule."""

    def __init__(self) -> None:
        self.counter, self.batches = Synchronisations("bincount"), 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.counter.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.counter.__exit__(None, None, None)
        self.batches += 1


@pytest.mark.parametrize("augment", [None, Augmentation(mixup_alpha=1.0)])
def test_a_training_step_brings_no_value_to_python(augment):
    watch = Watch()
    run = trainer(max_epochs=2, callbacks=[watch], limit_val_batches=0)
    run.fit(tiny(schedule=OneCycle()), Blobs(augment=augment))
    assert (watch.counter.seen, watch.batches) == ([], 12)
    with watch.counter:  # the counter itself: it sees what is to be avoided
        run.callback_metrics["train/loss"].item()
    assert len(watch.counter.seen) == 1


class NoWaiting(pl.Callback):
    """Lets nothing wait for the GPU, once the first steps have allocated and compiled."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx >= 10:
            torch.cuda.set_sync_debug_mode("error")
            self.steps += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == trainer.num_training_batches - 1:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("augment", [Augmentation(cutout_size=3), Augmentation(mixup_alpha=1.0)])
def test_200_steps_do_not_wait_for_the_gpu(fast, augment):
    watch = NoWaiting()
    run = trainer(max_epochs=1, callbacks=[watch, NonfiniteGuard()], accelerator="gpu", limit_val_batches=0)
    try:
        run.fit(tiny(schedule=OneCycle(), fast=fast), Blobs(per_class=200, batch_size=6, augment=augment))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps >= 200


@pytest.mark.process
@needs_compiler
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_training_learns_the_same(mode):
    runs = []
    for compiled in (None, mode):
        torch.manual_seed(0)
        run = trainer(max_epochs=2, precision="64-true")
        run.fit(tiny(schedule=OneCycle(), compile=compiled), Blobs(augment=None))
        runs.append((run.lightning_module.state_dict(), run.callback_metrics))
    (plain, figures), (compiled, same) = runs
    assert plain.keys() == compiled.keys()  # a checkpoint does not know of it
    for name in plain:
        assert torch.allclose(plain[name], compiled[name], rtol=1e-9, atol=1e-12), name
    for name in figures:
        assert figures[name].item() == pytest.approx(same[name].item(), rel=1e-6, nan_ok=True), name


@pytest.mark.process
@needs_compiler
def test_the_runs_of_a_process_are_compiled_once():
    def fit() -> None:
        network = tiny(schedule=OneCycle(), compile="default", fast=True)
        trainer(max_epochs=2).fit(network, Blobs(augment=None))

    fit()
    with torch.compiler.set_stance("fail_on_recompile"):  # after eight times, torch would no longer compile at all
        fit()


@needs_gpu
@pytest.mark.parametrize(("clip", "fused"), [(None, True), (0.5, None)])
def test_on_a_gpu_the_optimizer_is_one_kernel_unless_gradients_are_clipped(clip, fused):
    run = trainer(max_epochs=1, accelerator="gpu", precision="bf16-mixed", gradient_clip_val=clip)
    run.fit(tiny(), Blobs())
    assert run.optimizers[0].defaults["fused"] is fused


def test_on_a_cpu_the_optimizer_is_as_torch_chooses():
    assert tiny().new_optimizer().defaults["fused"] is None


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_weights_lie_in_the_memory_format_that_was_asked_for(channels_last):
    convolutions = [m for m in tiny(channels_last=channels_last).modules() if isinstance(m, torch.nn.Conv2d)]
    wide = [m.weight for m in convolutions if m.weight.shape[1] > 1 and m.weight.shape[2] > 1]
    assert len(wide) == 7
    assert all(w.is_contiguous(memory_format=torch.channels_last) is channels_last for w in wide)
    assert all(w.is_contiguous() is not channels_last for w in wide)


# What a user can get wrong.


@pytest.mark.parametrize(("name", "meant"), [("cifar_resnet21", "cifar_resnet20"), ("resnet188", "resnet18")])
def test_an_unknown_network_suggests_the_nearest(name, meant):
    with pytest.raises(ConfigurationError, match=rf"model\.network: '{name}'.*did you mean.*\b{meant}\b"):
        create_network(name, 10)


def test_a_network_unlike_any_other_gets_no_suggestion():
    with pytest.raises(ConfigurationError, match=r"'%%%' is not in timm's registry$"):
        create_network("%%%", 10)


@pytest.mark.parametrize(
    ("name", "arguments", "culprit"),
    [
        ("cifar_resnet20", {"depht": (1, 1, 1)}, "depht"),
        ("cifar_resnet20", {"shortcut": "D"}, "shortcut"),
        ("resnet10t", {"stem_wdith": 8}, "stem_wdith"),
    ],
)
def test_an_argument_that_the_network_does_not_take_is_named(name, arguments, culprit):
    with pytest.raises(ConfigurationError, match=culprit):
        create_network(name, 10, arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", math.nan),
        ("lr", 0.0),
        ("lr", math.nan),
        ("weight_decay", -1e-4),
    ],
)
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=rf"model\.{name}: {value} is not allowed, give"):
        tiny(**{name: value})


def test_a_checkpoint_of_a_pretrained_network_has_weights_of_its_own(monkeypatch):
    args = {"pretrained": True, "depths": [1], "widths": [8]}
    monkeypatch.setattr(
        "cifar_resnets.models.init.create_network", lambda *given: torch.nn.Linear(2, 2) if given[2] == args else None
    )
    assert ImageClassifier(NAMES, network_args=args).hparams["network_args"] == {"depths": [1], "widths": [8]}
