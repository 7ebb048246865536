import importlib
import io
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.data.split import split_indices
from cifar_resnets.data.statistics import channel_statistics
from cifar_resnets.errors import ConfigurationError, DataError

NAMES = ["ant", "bee", "cat", "dog"]
SIZE = (5, 6)


class Synthetic(ImageDataModule):
    """Random images that carry their own number in the first pixel, and note which splits were read."""

    def __init__(self, counts: tuple[int, ...] = (40, 40, 40, 40), grey: bool = False, **kwargs) -> None:
        super().__init__(**{"batch_size": 8} | kwargs)
        self.counts = counts
        self.grey = grey
        self.read: list[str] = []

    def source_classes(self):
        return NAMES[: len(self.counts)]

    def load(self, split):
        self.read.append(split)
        rng = np.random.default_rng(split == "test")
        labels = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        images = rng.integers(0, 256, (len(labels), *SIZE, 3), dtype=np.uint8)
        images[:, 0, 0] = np.arange(len(labels))[:, None] // [1, 256, 65536] % 256
        if self.grey:
            images[..., 2] = 77
        return images, labels


class LaidOut(Synthetic):
    """The same images as views that are not contiguous: (n, c, h, w) in a file, blue before red."""

    def load(self, split):
        images, labels = super().load(split)
        return images[..., ::-1].transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)[..., ::-1], labels


def ready(stage: str = "fit", **arguments) -> Synthetic:
    module = Synthetic(**arguments)
    module.setup(stage)
    return module


def plain(**arguments) -> Synthetic:
    """Statistics under which a normalised image is the image: its numbers can be read in the batches."""
    return ready(augment=None, mean=[0.0] * 3, std=[1 / 255] * 3, **arguments)


def numbers(loader) -> list[int]:
    """Which images a loader gives."""
    pixels = torch.cat([images for images, _ in loader])[:, :, 0, 0].round().long()
    return (pixels * torch.tensor([1, 256, 65536])).sum(1).tolist()


def labels_of(loader) -> np.ndarray:
    return torch.cat([labels for _, labels in loader]).numpy()


class Named(Synthetic):
    """The same images with names, which are their numbers."""

    def file_names(self, split):
        return [f"{split}/{number}.png" for number in range(sum(self.counts))]


# The module.


@pytest.mark.parametrize("classes", [None, ["dog", "bee"]])
def test_names_stay_with_their_images(classes):
    module = Named(classes=classes, num_train=20, augment=None, mean=[0.0] * 3, std=[1 / 255] * 3, eval_batch_size=7)
    module.setup("fit")
    module.setup("test")
    for loader, split in ((module.val_dataloader(), "train"), (module.test_dataloader(), "test")):
        assert loader.names == [f"{split}/{number}.png" for number in numbers(loader)]


def test_images_of_no_files_have_no_names():
    assert ready("test").test_dataloader().names is None


def test_the_loaders_give_the_images_of_the_split():
    module = plain(batch_size=144, eval_batch_size=10)
    _, labels = module.load("train")
    train, val = split_indices(labels, 0.1, None, 0, NAMES)
    assert sorted(numbers(module.train_dataloader())) == train.tolist()
    assert numbers(module.val_dataloader()) == val.tolist()
    assert np.array_equal(labels_of(module.val_dataloader()), labels[val])
    assert len(module.val_dataloader()) == 2
    assert "144 training and 16 validation images of 5x6 pixels in 4 classes" in module.summary()


@pytest.mark.parametrize("loader", ["test_dataloader", "predict_dataloader"])
def test_test_images_come_all_and_in_order(loader):
    module = plain(eval_batch_size=30)
    assert numbers(getattr(module, loader)()) == list(range(160))


def test_batches_are_augmented_and_their_number_known_beforehand():
    module = ready(batch_size=10, augment=Augmentation(crop_padding=1))
    loader = module.train_dataloader()
    assert len(loader) == module.num_train_batches == 14
    assert loader.sampler.augmentation == Augmentation(crop_padding=1) and loader.sampler.seed == 0


@pytest.mark.parametrize("classes", [["dog", "bee"], ["cat", "dog", "ant"], ["dog", "cat", "bee", "ant"]])
def test_chosen_classes_are_relabelled_in_the_order_given(classes):
    module = plain(classes=classes, batch_size=1, val_fraction=0.2)
    assert module.class_names == classes
    for loader, which in ((module.train_dataloader(), "train"), (module.test_dataloader(), "test")):
        _, source = module.load(which)
        names = [NAMES[label] for label in source[numbers(loader)]]
        assert [classes[label] for label in labels_of(loader)] == names
        assert set(names) == set(classes)
    assert len(numbers(module.test_dataloader())) == 40 * len(classes)


def test_training_never_reads_the_test_images():
    module = ready(stage="fit")
    module.setup("validate")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        list(loader)
    module.summary(), module.describe(), module.num_train_batches  # noqa: B018  # read for what it might load
    assert module.read == ["train"]


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_testing_reads_the_training_images_only_for_their_statistics(stage):
    assert plain(stage=stage).read == ["test"]
    module, fitted = ready(stage), ready("fit")
    assert module.read == ["test", "train"]
    assert (module.mean, module.std) == (fitted.mean, fitted.std)


@pytest.mark.parametrize("options", [{}, {"num_train": 37}, {"classes": ["dog", "ant"]}, {"val_fraction": 0.5}])
def test_statistics_are_those_of_the_images_trained_on(options):
    trained_on = numbers(plain(**options, batch_size=1).train_dataloader())
    module = ready(**options)
    values = module.load("train")[0][sorted(trained_on)].astype(np.float64) / 255
    np.testing.assert_allclose(module.mean, values.mean((0, 1, 2)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(module.std, values.std((0, 1, 2)), rtol=0, atol=1e-12)


def test_training_images_are_normalised_to_mean_0_and_deviation_1():
    module = ready(augment=None, batch_size=144)
    (images, _), *_ = module.train_dataloader()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_statistics_of_many_images_are_exact():
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8) // [1, 2, 50]
    mean, std = channel_statistics(images.astype(np.uint8))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=0, atol=1e-12)


def test_a_channel_without_contrast_has_a_finite_scale():
    module = ready(grey=True, augment=None)
    assert module.mean[2] == pytest.approx(77 / 255, abs=1e-2) and module.std[2] >= 1 / 255
    assert all(images.isfinite().all() for images, _ in module.train_dataloader())
    assert channel_statistics(np.full((2, 3, 3, 1), 77, np.uint8)) == ([77 / 255], [1 / 255])


def test_given_statistics_are_kept_and_used():
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    module = ready(mean=mean, std=std, eval_batch_size=1000)
    assert (module.mean, module.std) == (mean, std)
    (images, _), *_ = module.test_dataloader()
    expected = (module.load("test")[0] / 255 - mean) / std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-6)


def test_a_source_may_give_views_of_any_layout():
    module, expected = LaidOut(), ready()
    module.setup("fit")
    assert (module.mean, module.std) == (expected.mean, expected.std)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(module, loader)(), getattr(expected, loader)(), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_each_rank_gets_its_part_from_the_trainer():
    parts = []
    for rank in (0, 1):
        module = plain(eval_batch_size=20)
        root = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=root, overfit_batches=0.0)
        parts.append([numbers(module.train_dataloader()), numbers(module.test_dataloader())])
        assert {len(labels) for _, labels in module.train_dataloader()} == {4}  # half of 8
    alone = plain()
    assert sorted(parts[0][0] + parts[1][0]) == sorted(numbers(alone.train_dataloader()))
    assert sorted(parts[0][1] + parts[1][1]) == list(range(160))


# What is written into checkpoints and reports.


def primitive(value) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and primitive(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(primitive, value))
    return value is None or type(value) in (str, int, float, bool)


def rebuilt(description: dict) -> ImageDataModule:
    """What a recipe with this description makes, by the plain words of Python."""
    module_name, _, name = description["class_path"].rpartition(".")
    arguments = dict(description["init_args"])
    if arguments["augment"]:
        arguments["augment"] = Augmentation(**arguments["augment"])
    return getattr(importlib.import_module(module_name), name)(**arguments)


DESCRIBED = [
    {},
    {"augment": None, "num_train": 30, "classes": ["dog", "cat"]},
    {"counts": [9, 12, 15], "grey": True, "augment": Augmentation(padding_mode="reflect", mixup_alpha=0.5)},
    {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "val_fraction": 0.3, "split_seed": 4, "eval_batch_size": 7},
]


@pytest.mark.parametrize("arguments", DESCRIBED)
def test_the_description_builds_an_equal_module(arguments):
    module = ready(**arguments)
    again = rebuilt(module.describe())
    again.setup("fit")
    assert type(again) is Synthetic and again.describe() == module.describe()
    assert set(again.describe()["init_args"]) >= {"counts", "grey", "mean", "std", "augment", "classes"}
    for loader in ("train_dataloader", "val_dataloader"):
        for one, other in zip(getattr(module, loader)(), getattr(again, loader)(), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    "arguments", [{"counts": [9, 12, 15]} | arguments for arguments in DESCRIBED[:1]] + DESCRIBED[2:3]
)
def test_the_description_is_made_of_primitives(arguments):
    description = ready(**arguments).describe()
    assert primitive(description)
    assert yaml.safe_load(yaml.safe_dump(description)) == description
    file = io.BytesIO()
    torch.save(description, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == description


def test_the_description_fills_in_classes_and_statistics_but_not_the_seed_of_the_run():
    arguments = ready(seed=5).describe()["init_args"]
    assert arguments["classes"] == NAMES
    assert len(arguments["mean"]) == len(arguments["std"]) == 3
    assert "seed" not in arguments and "kwargs" not in arguments


# What a user can get wrong.


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("val_fraction", 1),
        ("val_fraction", -0.1),
        ("split_seed", -1),
        ("seed", -1),
        ("num_train", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"^data\.{name}: {value} is not allowed, give "):
        Synthetic(**{name: value})


ONES = [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "mean, std, message",
    [
        (ONES, None, r"data\.mean, std: .* give both or neither"),
        (None, ONES, r"data\.mean, std: .* give both or neither"),
        (ONES, [0.2, 0.0, 0.2], r"data\.std: .* give numbers above 0"),
        (ONES, [-0.2, 0.2, 0.2], r"data\.std: .* give numbers above 0"),
        (ONES, [0.2, float("nan"), 0.2], r"data\.std: .* give numbers above 0"),
        (ONES, [0.2], r"data\.std: .* give three numbers"),
        (ONES, [], r"data\.std: .* give three numbers"),
        ([0.5], ONES, r"data\.mean: .* give three numbers"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(mean, std, message):
    with pytest.raises(ConfigurationError, match=message):
        Synthetic(mean=mean, std=std)


@pytest.mark.parametrize(
    "classes, message",
    [
        (["ant", "elk"], r"data\.classes: \['elk'\] is not allowed, give some of ant, bee, cat, dog"),
        (["ant", "bee", "ant"], r"data\.classes: .* two or more, each once"),
        (["ant"], r"data\.classes: .* two or more, each once"),
        ([], r"data\.classes: .* two or more, each once"),
    ],
)
def test_classes_that_cannot_be_chosen_are_refused_before_any_image_is_read(classes, message):
    module = Synthetic(classes=classes)
    with pytest.raises(ConfigurationError, match=message):
        module.class_names  # noqa: B018  # a property that checks
    assert module.read == []
    with pytest.raises(ConfigurationError, match=message):
        module.setup("fit")


def test_a_source_without_images_is_refused():
    with pytest.raises(DataError, match="Synthetic: there are no test images"):
        plain(stage="test", counts=(0, 0))


def test_a_batch_larger_than_the_training_images_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size: 145 is more than the 144 training images"):
        ready(batch_size=145).train_dataloader()


def test_a_source_must_say_what_its_classes_and_images_are():
    with pytest.raises(TypeError, match="abstract.*load.*source_classes"):
        ImageDataModule()


@pytest.mark.parametrize(("overfit", "is_equal"), [(1, True), (0.5, True), (0, False)])
def test_overfitting_is_done_on_the_same_batches_in_each_epoch(overfit, is_equal):
    module = ready(batch_size=8)
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, overfit_batches=overfit)
    loader = module.train_dataloader()
    batches = []
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)
        batches.append(next(iter(loader)))
    assert torch.equal(batches[0][0], batches[1][0]) == torch.equal(batches[0][1], batches[1][1]) == is_equal


def counting(num, **changes):
    class Counting(Synthetic):
        def count_images(self, split, enough):
            return num

    return Counting(**changes)


@pytest.mark.parametrize(
    ("num", "changes", "most"),
    [
        (100, {"val_fraction": 0.1}, 90),
        (100, {"val_fraction": 0}, 100),
        (100, {"val_fraction": 0.5, "num_train": 30}, 30),
        (10, {"val_fraction": 0.1}, 6),  # four classes, an image of each to validate on
        (None, {"num_train": 30}, 30),
    ],
)
def test_a_batch_larger_than_the_training_images_is_refused_before_they_are_read(num, changes, most):
    counting(num, batch_size=most, **changes).check_batch_size()
    module = counting(num, batch_size=most + 1, **changes)
    with pytest.raises(ConfigurationError, match=f"{most + 1} is more than the {most} training images, give --data"):
        module.check_batch_size()
    assert module.read == []
