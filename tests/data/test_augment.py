import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tvf

from cifar_resnets.data.augment import Augmentation, Draws, crop_and_flip, cutout, draw, normalize, pad, with_mirrored
from cifar_resnets.errors import ConfigurationError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(num: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (num, *size, 3), dtype=torch.uint8, generator=seeded(seed))


def pillow_crop_and_flip(image: np.ndarray, padding: int, corner: list[int], flip: bool) -> np.ndarray:
    (height, width), (row, column) = image.shape[:2], corner
    padded = ImageOps.expand(Image.fromarray(image), border=padding, fill=0) if padding else Image.fromarray(image)
    cropped = padded.crop((column, row, column + width, row + height))
    return np.asarray(cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cropped)


def numpy_crop_and_flip(image: np.ndarray, padding: int, corner: list[int], flip: bool) -> np.ndarray:
    (height, width), (row, column) = image.shape[:2], corner
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    cropped = padded[row : row + height, column : column + width]
    return cropped[:, ::-1] if flip else cropped


def numpy_cutout(image: np.ndarray, centres: list[list[int]], hole_size: int) -> np.ndarray:
    image = image.copy()
    for row, column in centres:
        for i in range(row - hole_size // 2, row - hole_size // 2 + hole_size):
            for j in range(column - hole_size // 2, column - hole_size // 2 + hole_size):
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    image[i, j] = 0
    return image


def chi_square_excess(counts: torch.Tensor) -> float:
    """How many standard deviations chi-square lies above what equally likely cells give."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("size", [(32, 32), (7, 12), (12, 7)])
@pytest.mark.parametrize("padding", [0, 1, 4, 6])
@pytest.mark.parametrize("mode, reference", [("constant", pillow_crop_and_flip), ("reflect", numpy_crop_and_flip)])
def test_crop_and_flip_equal_a_reference_image_by_image(mode, reference, padding, size):
    augmentation = Augmentation(crop_padding=padding, padding_mode=mode)
    images = random_images(30, size)
    index = torch.randint(30, (50,), generator=seeded(1))  # out of order, some twice, some never
    draws = draw(augmentation, 50, size, seeded(2))
    result = crop_and_flip(pad(with_mirrored(images), augmentation), index, draws, size)
    assert result.shape == (50, *size, 3) and result.dtype == torch.uint8
    for i, corner, flip, got in zip(index, draws.corners.tolist(), draws.flips.tolist(), result, strict=True):
        np.testing.assert_array_equal(got.numpy(), reference(images[i].numpy(), padding, corner, flip))


def test_every_corner_and_both_flips_of_a_small_image():
    augmentation, size = Augmentation(crop_padding=2), (3, 5)
    image = random_images(1, size)
    corners = torch.cartesian_prod(torch.arange(5), torch.arange(5)).repeat(2, 1)
    draws = Draws(corners, torch.arange(50) >= 25, torch.zeros(50, 1, 2, dtype=torch.long))
    result = crop_and_flip(pad(with_mirrored(image), augmentation), torch.zeros(50, dtype=torch.long), draws, size)
    for corner, flip, got in zip(corners.tolist(), draws.flips.tolist(), result, strict=True):
        np.testing.assert_array_equal(got.numpy(), pillow_crop_and_flip(image[0].numpy(), 2, corner, flip))


def test_without_padding_and_flip_an_image_stays_what_it_is():
    augmentation = Augmentation(crop_padding=0, flip=False)
    images = random_images(8, (6, 4))
    draws = draw(augmentation, 8, (6, 4), seeded())
    for given in (images, with_mirrored(images)):
        assert torch.equal(crop_and_flip(pad(given, augmentation), torch.arange(8), draws, (6, 4)), images)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_padded_images_are_contiguous_whatever_the_layout_of_the_images(layout, padding, mode):
    images = random_images(4, (6, 5))
    inverse = [layout.index(axis) for axis in range(4)]
    laid_out = images.permute(layout).contiguous().permute(inverse)  # equal numbers in another order of memory
    augmentation = Augmentation(crop_padding=padding, padding_mode=mode)
    padded = pad(laid_out, augmentation)
    assert padded.is_contiguous()
    assert torch.equal(padded, pad(images, augmentation))


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_reflection_is_limited_by_the_smaller_side(size):
    images = random_images(2, size)
    widest = pad(images, Augmentation(crop_padding=4, padding_mode="reflect"))
    np.testing.assert_array_equal(widest, np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect"))
    with pytest.raises(ConfigurationError, match=r"^data\.augment\.crop_padding: 5 is not .*, give less than 5$"):
        pad(images, Augmentation(crop_padding=5, padding_mode="reflect"))


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_a_crop_shows_some_of_the_image(size):
    images = random_images(2, size)
    assert pad(images, Augmentation(crop_padding=4)).shape == (2, size[0] + 8, size[1] + 8, 3)
    with pytest.raises(ConfigurationError, match=rf"5 is not allowed for images of {size[0]}x{size[1]} pixels"):
        pad(images, Augmentation(crop_padding=5))


@pytest.mark.parametrize("hole_size", [1, 2, 3, 4, 7, 8, 40])
@pytest.mark.parametrize("num_holes", [1, 3])
def test_cutout_equals_a_loop_over_pixels(hole_size, num_holes):
    height, width = 9, 13
    images = torch.randn(60, height, width, 3, generator=seeded())
    holes = torch.stack([torch.randint(side, (60, num_holes), generator=seeded(side)) for side in (height, width)], -1)
    # over each corner and each edge, whatever the seed gives
    edges = [(0, 0), (0, 12), (8, 0), (8, 12), (0, 6), (8, 6), (4, 0), (4, 12), (4, 6)]
    holes[: len(edges), 0] = torch.tensor(edges)
    expected = [numpy_cutout(*pair, hole_size) for pair in zip(images.numpy(), holes.tolist(), strict=True)]
    np.testing.assert_array_equal(cutout(images.clone(), holes, hole_size), np.stack(expected))


def test_cutout_works_in_place_and_a_hole_of_no_size_changes_nothing():
    images = torch.randn(2, 4, 4, 3, generator=seeded())
    before, holes = images.clone(), torch.ones(2, 1, 2, dtype=torch.long)
    assert torch.equal(cutout(images, holes, 0), before)
    assert cutout(images, holes, 2) is images
    assert not torch.equal(images, before)


@pytest.mark.parametrize("size", [(32, 32), (5, 8)])
def test_normalize_is_float32_arithmetic_to_the_bit(size):
    images = random_images(20, size)
    mean, std = (np.float32(np.array(values) * 255) for values in (MEAN, STD))
    result = normalize(images, torch.from_numpy(mean), torch.from_numpy(std))
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), (images.numpy().astype(np.float32) - mean) / std)


def test_normalize_agrees_with_torchvision():
    images = random_images(20, (8, 6))
    result = normalize(images, torch.tensor(MEAN) * 255, torch.tensor(STD) * 255).permute(0, 3, 1, 2)
    scaled = tvf.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    torch.testing.assert_close(result, tvf.normalize(scaled, MEAN, STD), atol=1e-6, rtol=0)


def test_normalize_leaves_the_images_alone():
    images = random_images(2, (4, 4))
    before = images.clone()
    normalize(images, torch.ones(3), torch.ones(3))
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [1, 4])
def test_corners_and_flips_are_equally_likely_and_independent(padding):
    num, span = 40_000, 2 * padding + 1
    draws = draw(Augmentation(crop_padding=padding), num, (32, 32), seeded())
    cells = (draws.corners[:, 0] * span + draws.corners[:, 1]) * 2 + draws.flips
    assert chi_square_excess(torch.bincount(cells, minlength=span * span * 2)) < 4
    assert abs(draws.flips.double().mean() - 0.5) < 4 * 0.5 / num**0.5


def test_holes_fall_on_every_pixel_alike_and_each_on_its_own():
    draws = draw(Augmentation(cutout_size=4, cutout_holes=2), 40_000, (5, 7), seeded())
    pixels = draws.holes[..., 0] * 7 + draws.holes[..., 1]  # (n, 2)
    assert draws.holes[..., 0].max() == 4 and draws.holes[..., 1].max() == 6 and draws.holes.min() == 0
    pairs = pixels[:, 0] * 35 + pixels[:, 1]
    assert chi_square_excess(torch.bincount(pairs, minlength=35 * 35)) < 4


@pytest.mark.parametrize("off", [{"crop_padding": 0}, {"flip": False}, {"cutout_holes": 0}])
def test_switching_one_augmentation_off_leaves_the_others_as_they_were(off):
    full = draw(Augmentation(cutout_size=8), 100, (32, 32), seeded())
    less = draw(Augmentation(**{"cutout_size": 8, **off}), 100, (32, 32), seeded())
    same = {name: torch.equal(getattr(full, name), getattr(less, name)) for name in ("corners", "flips", "holes")}
    changed = {"crop_padding": "corners", "flip": "flips", "cutout_holes": "holes"}[next(iter(off))]
    assert same == {name: name != changed for name in same}


def test_a_draw_depends_on_its_generator_alone():
    def numbers(seed: int) -> list:
        draws = draw(Augmentation(), 50, (8, 8), seeded(seed))
        return [draws.corners.tolist(), draws.flips.tolist(), draws.holes.tolist()]

    state = torch.get_rng_state()
    assert numbers(3) == numbers(3) and numbers(3) != numbers(4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["crop_padding", "cutout_size", "cutout_holes", "mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_numbers_below_zero_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"^augment\.{name}: {value} is not allowed"):
        Augmentation(**{name: value})


def test_an_alternating_flip_without_a_flip_is_refused():
    with pytest.raises(ConfigurationError, match=r"^augment\.alternating_flip: true needs augment\.flip: true$"):
        Augmentation(flip=False, alternating_flip=True)


def test_an_unknown_padding_mode_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"^augment\.padding_mode: 'edge', allowed are constant and reflect"):
        Augmentation(padding_mode="edge")
