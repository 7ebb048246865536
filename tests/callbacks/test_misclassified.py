"""The galleries of misclassified images: what is in them, when they are drawn, and that they leave no trace."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from finder_runs import changed, digits, foreign, forgetful, perceptron, small, snapshot, trained, trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from support import TINY, Result, Synchronisations
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.cam import explainer
from cifar_resnets.cam.gradcam import METHODS, heatmaps
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import ConfigurationError

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

SIZE = (700, 66 + 4 * 104)
WORST, SAME = "val_misclassified/most_confident", "val_misclassified/same_images"
TEST = "test_misclassified/most_confident"


class Gallery(Misclassified):
    """Four rows; notes what is shown under which tag at which step."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**{"num_samples": 4} | changes)
        self.shown: list[tuple[str, int, Any]] = []

    def _show(self, trainer, module, folder, tag, samples):
        gallery = super()._show(trainer, module, folder, tag, samples)
        self.shown.append((tag, trainer.global_step, gallery))
        return gallery

    @property
    def tags(self) -> list[tuple[str, int]]:
        return [(tag, step) for tag, step, _ in self.shown]

    def under(self, tag: str) -> list[Any]:
        return [gallery for each, _, gallery in self.shown if each == tag]


def fitted(callback: Misclassified, *others: pl.Callback, data: Any = None, module: Any = None, **changes: Any) -> Any:
    """A fit of digits that are validated; five steps an epoch."""
    run = trainer(callback, *others, **{"limit_val_batches": None} | changes)
    run.fit(small() if module is None else module, digits() if data is None else data)
    return run


def probabilities(module: ImageClassifier, data: Digits, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a set of images, in float64."""
    loader = getattr(data, f"{name}_dataloader")()
    module = module.eval().cpu()
    with torch.no_grad():
        parts = [(labels, module(images).double().softmax(dim=1)) for images, labels in loader]
    labels, p = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return labels, p


# What is shown.


def test_the_most_confident_mistakes_of_a_test_are_those_that_numpy_finds(tmp_path):
    module, data, gallery = small(), digits(eval_batch_size=50), Gallery(num_samples=6)
    gallery.run_dir = tmp_path
    trainer(gallery).test(module, data, verbose=False)
    labels, p = probabilities(module, data, "test")
    loss, predicted = -np.log(p[np.arange(len(p)), labels]), p.argmax(axis=1)
    worst = [i for i in np.argsort(-loss, kind="stable") if predicted[i] != labels[i]]

    [shown] = gallery.under(TEST)
    assert sorted(shown.index.tolist()) == sorted(worst[:6])
    pixels, _ = data._sets["test"]
    for file, expected in (("gallery", shown.index.tolist()), ("mistakes", worst[:500])):
        with np.load(tmp_path / f"{file}.npz", allow_pickle=False) as found:
            index = found["index"]
            assert index.tolist() == expected
            assert found["label"].tolist() == labels[index].tolist()
            assert found["predicted"].tolist() == predicted[index].tolist()
            np.testing.assert_allclose(found["p_label"], p[index, labels[index]], rtol=1e-4)
            np.testing.assert_allclose(found["p_predicted"], p[index, predicted[index]], rtol=1e-4)
            assert np.array_equal(found["images"], pixels[index])
            types = {name: str(found[name].dtype) for name in ("index", "label", "predicted", "p_label", "images")}
            assert list(types.values()) == ["int64", "int64", "int64", "float32", "uint8"]


def test_the_heat_is_that_of_the_predicted_and_of_the_true_class(tmp_path):
    module, data, gallery = small(), digits(), Gallery()
    gallery.run_dir = tmp_path
    trainer(gallery).test(module, data, verbose=False)
    [shown] = gallery.under(TEST)
    images = torch.cat([images for images, _ in data.test_dataloader()])[shown.index]
    classes = torch.from_numpy(np.stack([shown.predicted, shown.labels], axis=1))
    expected = heatmaps(module.network, images, classes)
    np.testing.assert_allclose(shown.heat, expected, atol=1e-5)
    assert shown.heat.max() > 0.9
    with np.load(tmp_path / "gallery.npz", allow_pickle=False) as found:
        assert (str(found["layer"]), str(found["method"])) == ("layer1", "gradcam")
        for row, name in enumerate(("heat_predicted", "heat_true")):
            assert found[name].dtype == np.float16
            np.testing.assert_allclose(found[name], expected[:, row], atol=1e-3)


def test_pictures_are_in_the_event_file_and_beside_it(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    gallery = Gallery()
    run = fitted(gallery, logger=logger)
    run.test(run.model, digits(), verbose=False)
    events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {WORST, SAME, TEST}
    for tag, steps in ((WORST, [5, 10]), (SAME, [5, 10]), (TEST, [10])):
        assert [image.step for image in events.Images(tag)] == steps
        assert {(image.width, image.height) for image in events.Images(tag)} == {SIZE}
        path = tmp_path / "figures" / f"{tag.replace('/', '_')}.png"
        assert Image.open(path).size == SIZE
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["gallery.npz", "mistakes.npz"]


def test_the_same_images_stay_the_same_in_the_same_rows():
    gallery = Gallery()
    run = fitted(gallery, max_epochs=4, module=small(lr=0.3))
    first, *rest = gallery.under(SAME)
    assert sorted(first.index.tolist()) == sorted(gallery.under(WORST)[0].index.tolist())
    assert len(rest) == 3
    for each in rest:
        assert each.index.tolist() == first.index.tolist() and np.array_equal(each.images, first.images)
        assert np.array_equal(each.labels, first.labels)
    assert not np.array_equal(rest[-1].p_label, first.p_label)
    assert any(each.index.tolist() != first.index.tolist() for each in gallery.under(WORST)[1:])
    # the figures of the last are the network's
    labels, p = probabilities(run.model, digits_of(run), "val")
    np.testing.assert_allclose(rest[-1].p_label, p[first.index, first.labels], rtol=1e-3)
    assert np.array_equal(rest[-1].predicted, p[first.index].argmax(axis=1))


def digits_of(run: pl.Trainer) -> Digits:
    return run.datamodule  # type: ignore[attr-defined]


def test_the_first_of_the_same_images_are_filled_up_with_what_is_nearly_wrong():
    module, data = small(network=perceptron()), digits(augment=None, num_train=1200)
    trainer(max_epochs=3).fit(module, data)
    labels, p = probabilities(module, data, "val")
    wrong, loss = p.argmax(axis=1) != labels, -np.log(p[np.arange(len(p)), labels])
    num = int(wrong.sum()) + 3
    assert 3 < num < len(labels) - 3
    gallery = Gallery(num_samples=num)
    frozen = small(network=module.network, lr=1e-12, weight_decay=0.0)
    fitted(gallery, data=data, module=frozen, max_epochs=1)
    [worst], [same] = gallery.under(WORST), gallery.under(SAME)
    assert set(worst.index.tolist()) == set(np.flatnonzero(wrong).tolist())
    expected = [*np.flatnonzero(wrong), *sorted(np.flatnonzero(~wrong), key=lambda i: -loss[i])[:3]]
    assert set(same.index.tolist()) == {int(i) for i in expected}
    assert (same.labels == same.predicted).tolist() == [False] * (num - 3) + [True] * 3


def test_a_resumed_fit_goes_on_with_the_same_images(tmp_path):
    module, data = small(lr=0.3), digits()
    first = Gallery()
    run = fitted(first, data=data, module=module, max_epochs=1)
    run.save_checkpoint(tmp_path / "one.ckpt")
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]["Gallery"]
    assert state == {"same_images": first.under(SAME)[0].index.tolist()}
    second = Gallery()
    run = trainer(second, max_epochs=3, limit_val_batches=None)
    run.fit(small(lr=0.3), digits(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert [each.index.tolist() for each in second.under(SAME)] == [state["same_images"]] * 2
    assert second.under(WORST)[0].index.tolist() != state["same_images"]
    # a new fit with the same object begins anew
    run = fitted(second, data=digits(split_seed=1), module=small(lr=0.3), max_epochs=1)
    assert second.under(SAME)[-1].index.tolist() != state["same_images"]


def test_no_mistake_at_all_is_a_picture_of_one_line(tmp_path):
    class Knowing(nn.Module):
        """Reads the class from the first pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 10, 1)

        def forward(self, images):
            labels = images[:, 0, 0, 0].long()
            return self.body(images).mean(dim=(2, 3)) * 0 + 20.0 * nn.functional.one_hot(labels, 10)

    images = torch.zeros(20, 3, 8, 8) + torch.arange(20)[:, None, None, None] % 10
    loader = DataLoader([(image, int(image[0, 0, 0])) for image in images], batch_size=8)
    gallery = Gallery()
    gallery.run_dir = tmp_path
    run = trainer(gallery)
    run.test(small(network=Knowing()), loader, verbose=False)
    assert run.callback_metrics["test/acc"] == 1
    [picture] = (tmp_path / "figures").iterdir()
    assert Image.open(picture).size == (700, 66)
    with np.load(tmp_path / "gallery.npz") as found:
        assert found["images"].shape == (0, 8, 8, 3) and found["heat_true"].shape == (0, 8, 8)
    with np.load(tmp_path / "mistakes.npz") as found:
        assert found["index"].shape == (0,)


# When.


@pytest.mark.parametrize(
    "every, changes, expected",
    [
        (None, {"max_epochs": 3}, [5, 10, 15]),
        (None, {"max_epochs": 20}, [10 * n for n in range(1, 11)]),
        (2, {"max_epochs": 5}, [10, 20, 25]),
        (100, {"max_epochs": 3}, [15]),
        (100, {"max_steps": 7, "max_epochs": -1}, [7]),
        (4, {"max_epochs": 6, "check_val_every_n_epoch": 3}, [30]),
        (1, {"max_epochs": 3, "limit_val_batches": 0}, []),
        (1, {"max_epochs": 3, "fast_dev_run": 2}, []),
        (1, {"max_epochs": 1, "num_sanity_val_steps": 1}, [5]),
        (1, {"max_epochs": 1, "num_sanity_val_steps": 1, "check_val_every_n_epoch": 5}, []),
    ],
)
def test_pictures_are_drawn_when_they_are_due(every, changes, expected):
    gallery = Gallery(every_n_epochs=every, num_samples=1)
    fitted(gallery, module=small(network=perceptron()), **changes)
    assert gallery.tags == [(tag, step) for step in expected for tag in (WORST, SAME)]


def test_a_run_that_ends_early_shows_its_last_validation():
    gallery = Gallery(every_n_epochs=100)
    stop = EarlyStopping("val/acc", mode="max", patience=1, min_delta=1.0)
    run = fitted(gallery, stop, max_epochs=50)
    assert run.current_epoch < 5
    assert gallery.tags == [(WORST, run.global_step), (SAME, run.global_step)]
    labels, p = probabilities(run.model, digits_of(run), "val")
    [worst] = gallery.under(WORST)
    np.testing.assert_allclose(worst.p_predicted, p[worst.index].max(axis=1), rtol=1e-3)


class Stop(pl.Callback):
    """Ends the run in its third epoch, as a time limit does."""

    def on_train_batch_end(self, trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= 12


def test_if_the_network_has_changed_since_its_last_validation_the_figures_are_the_present_ones():
    gallery = Gallery(every_n_epochs=100)
    run = fitted(gallery, Stop(), max_epochs=50, check_val_every_n_epoch=2, module=small(lr=0.3))
    step = run.global_step
    assert 10 < step <= 15 and gallery.tags == [(WORST, step), (SAME, step)]
    labels, p = probabilities(run.model, digits_of(run), "val")
    [same], [worst] = gallery.under(SAME), gallery.under(WORST)
    np.testing.assert_allclose(same.p_label, p[same.index, same.labels], rtol=1e-3)
    assert (worst.labels != worst.predicted).all()


def test_nothing_is_kept_afterwards():
    gallery = Gallery()
    run = fitted(gallery)
    run.validate(run.model, digits(), verbose=False)
    run.test(run.model, digits(), verbose=False)
    assert gallery._collector is None
    assert gallery.tags[-2:] == [(WORST, 10), (TEST, 10)]  # the same images are of a fit


# No trace.


@pytest.mark.parametrize("network", [None, forgetful])
def test_the_final_weights_are_the_same_with_and_without(tmp_path, network):
    def run(name: str, *callbacks: pl.Callback) -> dict[str, Any]:
        module = small(network=network and network())
        return trained(tmp_path / name, module, digits(), *callbacks, limit_val_batches=None, max_epochs=3)

    gallery = Gallery()
    with_it, without = run("with", gallery), run("without")
    assert len(gallery.shown) == 6
    own = [key for key in with_it if key.startswith("/callbacks")]
    assert own and changed({key: value for key, value in with_it.items() if key not in own}, without) == []


class Watch(pl.Callback):
    """Compares what a network is before the galleries and after them; gradients are accumulated meanwhile."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery, self.differences = gallery, []

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        before = snapshot(pl_module.network)
        assert any(value is not None for name, value in before.items() if name.endswith(".grad"))
        Misclassified.on_validation_epoch_end(self.gallery, trainer, pl_module)
        self.differences.append(changed(before, snapshot(pl_module.network)))


class Passive(Gallery):
    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        """Is left to `Watch`."""


def test_mode_gradients_buffers_and_random_numbers_are_as_before():
    module, gallery = small(network=forgetful()), Passive(receptive_field=True, layers=["0"])
    for p in module.network[5].parameters():
        p.requires_grad = False
    watch = Watch(gallery)
    # validation in the middle of an accumulation
    fitted(gallery, watch, module=module, max_epochs=2, accumulate_grad_batches=4, val_check_interval=3)
    assert watch.differences and not any(watch.differences)
    assert gallery.under(WORST) and gallery.under(WORST)[0].heat is not None


class Watched(Gallery):
    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.counter, self.batches = Synchronisations(), 0

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        with self.counter:
            super().on_validation_batch_end(*args, **kwargs)
        self.batches += 1

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        with self.counter:
            super().on_test_batch_end(*args, **kwargs)
        self.batches += 1


def test_a_batch_brings_no_value_to_python():
    gallery = Watched()
    run = fitted(gallery, data=digits(eval_batch_size=30), max_epochs=2)
    run.test(run.model, digits(), verbose=False)
    assert gallery.batches > 5 and gallery.counter.seen == []


# Wherever it runs.


class Stream(IterableDataset):
    def __iter__(self):
        yield from foreign().dataset


def compiled() -> ImageClassifier:
    """A network that torch.compile wrapped, which counts how often it is compiled."""
    module = small()
    module.compilations = 0

    def backend(graph, inputs):
        module.compilations += 1
        return graph

    module.network = torch.compile(module.network, backend=backend)
    return module


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"logger": False},
        {"inference_mode": False},
        {"limit_val_batches": 1, "limit_test_batches": 2},
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 2},
    ],
)
def test_it_works_however_it_is_run(changes, caplog):
    gallery = Gallery()
    data = digits(eval_batch_size=30)
    run = fitted(gallery, data=data, max_epochs=1, **changes)
    run.validate(run.model, data, verbose=False)
    run.test(run.model, data, verbose=False)
    assert {tag for tag, _ in gallery.tags} == {WORST, SAME, TEST}
    assert all(len(each.images) == 4 and each.heat.max() > 0.5 for _, _, each in gallery.shown)
    pixels = data._sets["test"][0][gallery.under(TEST)[0].index].numpy().astype(int)
    tolerance = 4 if changes.get("precision") == "bf16-true" else 0
    assert np.abs(gallery.under(TEST)[0].images - pixels).max() <= tolerance
    assert "no heatmaps" not in caplog.text


@pytest.mark.parametrize("channels_last", [True, False])
def test_frozen_layers_and_memory_formats(channels_last):
    module, gallery = small(channels_last=channels_last), Gallery()
    for p in module.network.layer1.parameters():
        p.requires_grad = False
    fitted(gallery, module=module, max_epochs=1)
    assert gallery.under(WORST)[0].heat.max() > 0.5


def test_a_compiled_network_is_neither_compiled_again_nor_different():
    plain, other = Gallery(), Gallery()
    fitted(plain, max_epochs=1)
    module = compiled()
    fitted(other, module=module, max_epochs=1)
    without = compiled()
    trainer(max_epochs=1, limit_val_batches=None).fit(without, digits())
    assert module.compilations == without.compilations > 0
    for one, two in zip(plain.shown, other.shown, strict=True):
        assert one[2].index.tolist() == two[2].index.tolist()
        np.testing.assert_allclose(one[2].heat, two[2].heat, atol=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_plain_loaders_are_shown_with_their_values_stretched(stream, capsys):
    gallery = Gallery()
    loader = DataLoader(Stream(), batch_size=40) if stream else foreign()
    run = trainer(gallery, limit_val_batches=None, max_epochs=2)
    run.fit(small(), foreign(shuffle=True), loader)
    assert gallery.tags == [(WORST, 5), (SAME, 5), (WORST, 10), (SAME, 10)]
    images, labels = foreign().dataset.tensors
    for _, _, each in gallery.shown:
        assert np.array_equal(each.labels, labels[each.index].numpy())
        expected = images[each.index].permute(0, 2, 3, 1)
        expected = (expected - expected.min()) / (expected.max() - expected.min()) * 255
        assert np.abs(each.images - expected.numpy()).max() < 0.51
        assert each.heat.max() > 0.5
    assert capsys.readouterr().out.count("heatmaps: gradcam at layer1 (32x32)") == 1


def test_several_loggers_and_a_folder_of_its_own(tmp_path):
    loggers = [TensorBoardLogger(tmp_path / "a", name="", version=""), CSVLogger(tmp_path / "b", name="", version="")]
    gallery = Gallery()
    gallery.run_dir = tmp_path / "run"
    fitted(gallery, logger=loggers, max_epochs=1)
    assert set(EventAccumulator(str(tmp_path / "a")).Reload().Tags()["images"]) == {WORST, SAME}
    names = {f"{tag.replace('/', '_')}.png" for tag in (WORST, SAME)}
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == names
    assert not list((tmp_path / "a").glob("*.png")) and not (tmp_path / "a" / "figures").exists()


def test_logits_that_are_not_numbers_are_no_error():
    module, gallery = small(), Gallery()
    with torch.no_grad():
        module.network.get_classifier().weight.fill_(math.nan)
    trainer(gallery).test(module, digits(), verbose=False)
    [shown] = gallery.under(TEST)
    assert len(shown) == 4 and np.isnan(shown.p_label).all() and (shown.labels != shown.predicted).all()


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (96, 64)])
def test_images_of_other_sizes(size, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 3, *size, generator=generator)
    loader = DataLoader([(image, i % 10) for i, image in enumerate(images)], batch_size=8)
    gallery = Gallery(receptive_field=True)
    gallery.run_dir = tmp_path
    trainer(gallery).test(small(), loader, verbose=False)
    [shown] = gallery.under(TEST)
    assert shown.images.shape[1:] == (*size, 3) and shown.fields.shape == (4, 4)
    side = max(size)
    expected = tuple(round(each * min(1, 64 / side)) for each in size)
    with np.load(tmp_path / "mistakes.npz") as found:
        assert found["images"].shape[1:] == (*expected, 3) and len(found["images"]) > 10


def contents(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class Signed(Gallery):
    """Leaves a file with the number of each rank that draws."""

    def _show(self, trainer, module, folder, *args):
        (folder / f"rank{trainer.global_rank}").touch()
        return super()._show(trainer, module, folder, *args)


@pytest.mark.process
def test_two_ranks_show_what_one_shows_and_write_it_once(tmp_path):
    found = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        gallery = Signed(num_samples=7, receptive_field=True)
        fork = {"strategy": "ddp_fork", "devices": 2} if ranks == 2 else {}
        logger = TensorBoardLogger(folder, name="", version="")
        run = trainer(gallery, logger=logger, max_epochs=2, limit_val_batches=None, **fork)
        # a network that does not change: in training, a batch norm of each rank sees its own images
        run.fit(small(network=perceptron(), lr=1e-12), digits(eval_batch_size=32))
        run.test(small(), digits(eval_batch_size=32), verbose=False)
        assert [path.name for path in folder.glob("rank*")] == ["rank0"]
        arrays = {name: contents(folder / f"{name}.npz") for name in ("gallery", "mistakes")}
        events = EventAccumulator(str(folder)).Reload()
        # the Trainer whose ranks were forked has itself taken no step
        images = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"] if tag != TEST}
        assert len(events.Images(TEST)) == 1
        pictures = {path.name: np.asarray(Image.open(path)) for path in (folder / "figures").iterdir()}
        found[ranks] = arrays, images, pictures
    one, two = found[1], found[2]
    assert two[1] == one[1] == {WORST: [5, 10], SAME: [5, 10]}
    for file, arrays in one[0].items():
        for name, values in arrays.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(two[0][file][name], values, atol=2e-3)
            else:
                assert np.array_equal(two[0][file][name], values), (file, name)
    assert len(one[0]["gallery"]["index"]) == 7
    assert one[2].keys() == two[2].keys() and len(one[2]) == 3
    for name, picture in one[2].items():
        assert (picture == two[2][name]).mean() > 0.99


# What a user can get wrong.


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_samples": 0}, "Misclassified.num_samples: 0 is not allowed, give 1 to 500"),
        ({"num_samples": 501}, "Misclassified.num_samples: 501 is not allowed, give 1 to 500"),  # a picture of GB
        ({"every_n_epochs": 0}, "Misclassified.every_n_epochs: 0 is not allowed, give 1 or more"),
        ({"method": "gradcan"}, f"Misclassified.method: gradcan is not allowed, give one of {', '.join(METHODS)}"),
        ({"layers": []}, "Misclassified.layers: [] is not allowed, give one name or more, or null"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigurationError) as refused:
        Misclassified(**changes)
    assert str(refused.value) == message


class Unreached(ImageClassifier):
    def training_step(self, batch, batch_idx):
        pytest.fail("a step was taken")


@pytest.mark.parametrize(
    "layers, data",
    [
        (["layer9"], digits),
        (["layer1", "nothing"], digits),
        (["fc"], digits),  # returns no map; of a plain loader that is known only with its first image
        (["layer9"], foreign),
    ],
)
def test_a_layer_that_cannot_be_shown_is_refused_before_the_first_step(layers, data):
    with pytest.raises(ConfigurationError, match=f"^layers: [^\n]*{layers[-1]}[^\n]*$"):
        fitted(Gallery(layers=layers), module=small(Unreached), data=data())


def test_the_command_line_refuses_it_in_one_line(cli: Callable[..., Result]):
    Path("tiny.yaml").write_text(TINY)
    name = "cifar_resnets.callbacks.misclassified.Misclassified"
    result = cli("fit", "-c", "tiny.yaml", "--trainer.callbacks+", name, "--trainer.callbacks.layers", "[layer9]")
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert "layer9" in result.err and "epoch" not in result.out
    result = cli("fit", "-c", "tiny.yaml", "--trainer.callbacks+", name, "--trainer.callbacks.method", "some")
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert "eigencam" in result.err


class Rolling(nn.Module):
    def forward(self, images):
        return torch.fft.fft2(images).real


def unfollowed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), Rolling(), nn.Conv2d(4, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_field_that_cannot_be_followed_is_refused_before_the_first_step():
    fitted(Gallery(), module=small(network=unfollowed()), max_epochs=1)
    with pytest.raises(ConfigurationError, match="^[^\n]*$"):
        fitted(Gallery(receptive_field=True), module=small(Unreached, network=unfollowed()))


def test_a_network_without_maps_is_shown_without_heat(caplog):
    gallery = Gallery()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with caplog.at_level(logging.WARNING):
        run = fitted(gallery, module=small(network=flat))
    assert run.current_epoch == 2 and len(gallery.shown) == 4
    assert all(each.heat is None and len(each) == 4 for _, _, each in gallery.shown)
    [line] = [record.getMessage() for record in caplog.records if "Misclassified" in record.getMessage()]
    assert "\n" not in line


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory\nat all"), ValueError("odd")])
def test_a_picture_that_fails_does_not_end_the_training(error, caplog, monkeypatch):
    def failing(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(explainer, "heatmaps", failing)
    gallery = Gallery()
    with caplog.at_level(logging.WARNING):
        run = fitted(gallery)
    assert run.current_epoch == 2 and len(gallery.shown) == 4
    assert all(each.heat is None for _, _, each in gallery.shown)
    assert caplog.text.count("there will be no heatmaps") == 1


# What is said.


def test_the_layer_is_said_once(capsys):
    gallery = Gallery()
    run = fitted(gallery, num_sanity_val_steps=1)
    run.test(run.model, digits(), verbose=False)
    assert capsys.readouterr().out.count("heatmaps:") == 1


@pytest.mark.parametrize("method", ["gradcam++", "hirescam", "eigencam"])
def test_another_method_and_several_layers(method, capsys):
    gallery = Gallery(method=method, layers=["conv1", "layer1"])
    run = trainer(gallery)
    module = small()
    run.test(module, digits(), verbose=False)
    [shown] = gallery.under(TEST)
    assert capsys.readouterr().out.count(f"heatmaps: {method} at conv1 (32x32), layer1 (32x32)\n") == 1
    images = torch.cat([images for images, _ in digits_of(run).test_dataloader()])[shown.index]
    classes = torch.from_numpy(np.stack([shown.predicted, shown.labels], axis=1))
    expected = heatmaps(module.network, images, classes, method=method, layers=["conv1", "layer1"])
    np.testing.assert_allclose(shown.heat, expected, atol=1e-4)
