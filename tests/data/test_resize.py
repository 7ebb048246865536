"""An image becomes a square: against torchvision, and where torchvision has no answer."""

import numpy as np
import pytest
from image_samples import noise, save, source, write_samples
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from cifar_resnets.data.image_cache import cache_folder
from cifar_resnets.data.resize import MODES, resize_to_square, stored_size
from cifar_resnets.errors import ConfigurationError

# width, height: small, large, both proportions, odd and even rests
SIZES = [(1, 1), (7, 5), (5, 7), (40, 30), (30, 41), (32, 32), (33, 32), (200, 13), (13, 200), (300, 225), (97, 101)]


def squashed(image, size):
    return F.resize(image, [size, size])


def cropped(image, size):
    return F.center_crop(F.resize(image, size), [size, size])


def padded(image, size):
    resized = v2.Resize(size=None, max_size=size)(image)
    left, top = ((size - side) // 2 for side in resized.size)
    rest = [left, top, size - resized.width - left, size - resized.height - top]
    return F.pad(resized, rest, fill=(1, 2, 3))


REFERENCES = {"squash": squashed, "crop": cropped, "pad": padded}


@pytest.mark.parametrize("image_size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_it_is_bit_equal_to_torchvision(mode, image_size):
    image = Image.fromarray(noise(*image_size[::-1], 3))
    for size in (1, 8, 31, 64):
        if mode != "pad" or size * min(image_size) >= max(image_size):  # torchvision resizes it to no pixel
            result = resize_to_square(image, size, mode, background="#010203")
            np.testing.assert_array_equal(np.asarray(result), np.asarray(REFERENCES[mode](image, size)))


@pytest.mark.parametrize("turn", [False, True])
def test_the_middle_of_a_panorama_is_cropped_without_the_rest(turn):
    image = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8), 64)[None, :, None].repeat(9, 0).repeat(3, 2))
    image = image.transpose(Image.Transpose.TRANSPOSE) if turn else image
    result = np.asarray(resize_to_square(image, 512, "crop"))
    assert result.shape == (512, 512, 3) and {*np.unique(result)} <= {127, 128}


def test_a_thin_image_keeps_a_row_of_pixels_when_it_is_padded():
    result = np.asarray(resize_to_square(Image.new("RGB", (1000, 1), "red"), 16, "pad"))
    assert (result[7] == (255, 0, 0)).all() and (np.delete(result, 7, axis=0) == 255).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_image_that_is_turned_by_its_exif_tag_is_turned_before(tmp_path, mode):
    upright = Image.fromarray(noise(30, 20, 3))
    tag = Image.Exif()
    tag[274] = 6  # to be turned clockwise
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png", upright.transpose(Image.Transpose.ROTATE_90), exif=tag)
    images, _ = source(tmp_path, 12, resize=mode, augment=None).load("test")
    np.testing.assert_array_equal(images[0], np.asarray(resize_to_square(upright, 12, mode)))


def test_each_mode_has_a_cache_of_its_own(tmp_path):
    root = write_samples(tmp_path / "root")
    save(root / "test/cat/0.png", noise(9, 17, 3))
    found = [source(root, resize=mode, augment=None).load("test")[0][0] for mode in (*MODES, *MODES)]
    assert [np.array_equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [False] * 3
    assert all(np.array_equal(found[i], found[i + 3]) for i in range(3))
    names = {path.name for path in cache_folder(root).iterdir() if path.suffix != ".lock"}
    assert names == {"test-8", "test-8-crop", "test-8-pad"}


def test_what_is_stored_for_crops_is_a_seventh_larger():
    assert [stored_size(size) for size in (1, 7, 8, 32, 96, 224, 512)] == [2, 8, 10, 37, 110, 256, 586]


def test_an_unknown_mode(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^data.resize: 'fit' is not allowed, give squash, crop, pad$"):
        source(tmp_path, resize="fit")
