"""Random resized crops: the boxes against timm's, the pixels against torchvision's, and their way to a batch."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from image_samples import noise, save, source
from PIL import Image
from scipy import stats
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import v2

from cifar_resnets.data import stored_images
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.digits import Digits
from cifar_resnets.data.loaders import TrainLoader
from cifar_resnets.data.random_crops import RATIO, SCALE, draw_boxes, resized_crops, whole_images
from cifar_resnets.data.resize import resize_to_square
from cifar_resnets.errors import ConfigurationError

SIZE = (6, 6)
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def boxes_of(size, num=4000, **ranges):
    generator = torch.Generator().manual_seed(0)
    return draw_boxes(Augmentation(**ranges), num, size, generator)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((256, 256), None, None),
        ((37, 37), None, None),
        ((40, 90), [0.3, 1.0], None),
        ((90, 30), None, [0.5, 2.0]),
        ((64, 64), [0.5, 0.5], [1.0, 1.0]),
    ],
)
def test_boxes_are_distributed_as_timm_draws_them(size, scale, ratio):
    ours = boxes_of(size, crop_scale=scale, crop_ratio=ratio).numpy()
    random.seed(0)
    image, ranges = Image.new("RGB", size[::-1]), (scale or SCALE, ratio or RATIO)
    theirs = np.array([RandomResizedCropAndInterpolation.get_params(image, *ranges) for _ in range(4000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all() and (ours[:, :2] + ours[:, 2:] <= size).all()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    for one, other in ((2, 3), (0, 2), (1, 3)):  # how they depend on each other
        assert stats.ks_2samp(ours[:, one] * ours[:, other], theirs[:, one] * theirs[:, other]).pvalue > 1e-3


@pytest.mark.parametrize(("size", "ratio"), [((30, 30), [3.0, 4.0]), ((30, 90), [0.2, 0.3]), ((90, 30), [1.0, 2.0])])
def test_where_no_box_fits_the_largest_in_the_middle_is_taken_as_timm_does(size, ratio):
    boxes = boxes_of(size, num=50, crop_scale=[1.0, 1.0], crop_ratio=ratio)
    image = Image.new("RGB", size[::-1])
    expected = RandomResizedCropAndInterpolation.get_params(image, (1.0, 1.0), tuple(ratio))
    assert {tuple(box) for box in boxes.tolist()} == {expected}


@pytest.mark.parametrize("size", [(6, 6), (16, 16), (23, 9)])
def test_pixels_are_those_of_torchvision(size):
    images = torch.from_numpy(noise(9, 16, 16, 3))
    index, flips = torch.randint(9, (60,)), torch.arange(60) % 2 == 0
    boxes = boxes_of((16, 16), num=60)
    boxes[0], boxes[1] = torch.tensor([0, 0, 16, 16]), torch.tensor([3, 4, 1, 1])
    found = resized_crops(images, index, boxes, flips, size)
    assert found.is_contiguous()
    for image, number, box, flip in zip(found, index, boxes.tolist(), flips, strict=True):
        crop = v2.functional.resized_crop(images[number].permute(2, 0, 1), *box, size=list(size), antialias=True)
        expected = v2.functional.horizontal_flip(crop) if flip else crop
        assert torch.equal(image.permute(2, 0, 1), expected)


def test_they_are_nearly_those_of_pillow():
    images = torch.from_numpy(noise(1, 64, 64, 3))
    (found,) = whole_images(images, (24, 24))
    expected = np.asarray(Image.fromarray(images[0].numpy()).resize((24, 24), Image.Resampling.BILINEAR))
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1


# In a loader.


def loader(augmentation, *, images=None, crop_size=SIZE, **changes):
    images = (
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8))
        if images is None
        else images
    )
    settings = {"batch_size": 8, "seed": 3, "num_classes": 24, "crop_size": crop_size, **STATISTICS, **changes}
    return TrainLoader(images, torch.arange(len(images)), augmentation=augmentation, **settings)


def test_a_batch_equals_torchvision_image_by_image():
    found = loader(Augmentation(cutout_size=2))
    found.sampler.set_epoch(4)
    order, draws = found.sampler.plan()
    position = 0
    for batch, labels in found:
        for image, label in zip(batch, labels, strict=True):
            assert label == order[position]
            stored = found._images._images[label].permute(2, 0, 1)
            box = draws.boxes[position].tolist()
            crop = v2.functional.resized_crop(stored, *box, size=list(SIZE), antialias=True)
            crop = crop.flip(2) if draws.flips[position] else crop
            mean, std = (
                torch.tensor(STATISTICS[name], dtype=torch.float64).mul(255).float() for name in ("mean", "std")
            )
            expected = (crop.float() - mean[:, None, None]) / std[:, None, None]
            row, column = draws.holes[position, 0].tolist()
            expected[:, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = 0
            assert torch.equal(image, expected)
            position += 1


def test_boxes_do_not_change_what_else_is_drawn():
    without, with_boxes = loader(Augmentation(crop_padding=0), crop_size=None), loader(Augmentation(crop_padding=0))
    (order, draws), (same, others) = without.sampler.plan(), with_boxes.sampler.plan()
    assert torch.equal(order, same) and torch.equal(draws.flips, others.flips) and draws.boxes is None


def test_epochs_differ_and_come_back():
    found = loader(Augmentation())
    epochs = []
    for epoch in (0, 1, 0):
        found.sampler.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in found]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_ranks_and_resumed_epochs_see_the_same_crops():
    whole = [images for images, _ in loader(Augmentation())]
    ranks = [[images for images, _ in loader(Augmentation(), rank=rank, world_size=2)] for rank in range(2)]
    assert all(torch.equal(one, torch.cat(parts)) for one, *parts in zip(whole, *ranks, strict=True))
    resumed = loader(Augmentation())
    resumed.load_state_dict({"done": 1})
    assert all(torch.equal(one, other) for one, (other, _) in zip(whole[1:], resumed, strict=True))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_large_images_are_padded_a_batch_at_a_time_with_the_same_bits(monkeypatch, mode, flip):
    augmentation = Augmentation(crop_padding=2, padding_mode=mode, flip=flip, cutout_size=3)
    stored = list(loader(augmentation, crop_size=None))
    monkeypatch.setattr(stored_images, "LARGE", 0)
    large = loader(augmentation, crop_size=None)
    assert large._images._images.shape == (24, 8, 8, 3)
    for (found, labels), (expected, same) in zip(large, stored, strict=True):
        assert torch.equal(found, expected) and torch.equal(labels, same)
        assert found.is_contiguous(memory_format=torch.channels_last)


# In a source.


@pytest.fixture
def photos(tmp_path):
    for split, num in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            for number in range(num):
                save(tmp_path / "photos" / split / name / f"{number:02}.png", noise(20 + number, 30, 3))
    return tmp_path / "photos"


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_training_images_vary_and_the_others_are_resized_without_chance(photos, mode):
    data = source(photos, 14, resize=mode, batch_size=4, val_fraction=0.25)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert [tuple(data._set(name)[0].shape) for name in ("train", "val", "test")] == [
        (18, 16, 16, 3), (6, 14, 14, 3), (6, 14, 14, 3),
    ]  # fmt: skip
    assert data.image_shape == (14, 14) and "18 training and 6 validation images of 14x14 pixels" in data.summary()
    files = sorted(photos.glob("train/*/*.png"))

    def read(path, size):
        return np.asarray(resize_to_square(Image.open(path), size, mode))

    small, large = ([read(path, size) for path in files] for size in (14, 16))
    number = [next(i for i, one in enumerate(large) if np.array_equal(one, image)) for image in data._set("train")[0]]
    others = [next(i for i, one in enumerate(small) if np.array_equal(one, image)) for image in data._set("val")[0]]
    assert sorted(number + others) == list(range(24))
    for image, path in zip(data._set("test")[0], sorted(photos.glob("test/*/*.png")), strict=True):
        np.testing.assert_array_equal(image, read(path, 14))
    batch, _ = next(iter(data.train_dataloader()))
    assert batch.shape == (4, 3, 14, 14) and data.sample(5).shape == (5, 3, 14, 14)
    description = data.describe()["init_args"]
    assert description["resize"] == mode and description["image_size"] == 14


def test_without_augmentation_there_is_no_chance(photos):
    data = source(photos, 14, resize="crop", augment=None, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert data._set("train")[0].shape[1:3] == (14, 14)


def test_a_test_stores_no_larger_images(photos):
    data = source(photos, 14, resize="crop", test_fraction=None)
    data.network_classes = ["cat", "dog"]
    assert data._sizes("test") == [14] and data._sizes("train") == [14]


def test_one_folder_is_cropped_too(photos):
    data = source(photos / "train", 14, resize="crop", test_fraction=0.3, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    sizes = [data._set(name)[0].shape[1] for name in ("train", "val", "test")]
    assert sizes == [16, 14, 14] and sum(len(data._set(name)[0]) for name in ("train", "val", "test")) == 24


# What makes no sense.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": [0.5]}, "augment.crop_scale: .* is not allowed, give two numbers above 0 and at most 1"),
        ({"crop_scale": [0.5, 1.5]}, "augment.crop_scale"),
        ({"crop_scale": [0.9, 0.5]}, "augment.crop_scale"),
        ({"crop_ratio": [0.0, 1.0]}, "augment.crop_ratio: .* is not allowed, give two numbers above 0, the smaller"),
        ({"crop_ratio": [1.0, math.inf]}, "augment.crop_ratio"),
        ({"crop_ratio": [math.nan, 1.0]}, "augment.crop_ratio"),
    ],
)
def test_ranges_that_are_none(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Augmentation(**changes)


def test_settings_of_the_other_kind_of_crops(photos):
    given = dataclasses.replace(Augmentation(), crop_scale=[0.5, 1.0])
    for data in (source(photos, augment=given), Digits(augment=given)):
        with pytest.raises(
            ConfigurationError, match=r"^data.augment.crop_scale: there are no random resized crops: give"
        ):
            data.check_batch_size()
    with pytest.raises(ConfigurationError, match=r"^data.augment.crop_padding: images that are not squashed are not"):
        source(photos, resize="crop", augment=Augmentation(crop_padding=2)).check_batch_size()
