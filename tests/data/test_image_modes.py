"""Images of all modes against what NumPy makes of their values."""

import io
import warnings

import numpy as np
import pytest
from image_samples import noise
from PIL import Image

from cifar_resnets.data.image_files import formats
from cifar_resnets.data.image_modes import check_color, to_rgb, white_level
from cifar_resnets.errors import ConfigurationError

ORIENTATION = 0x0112
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def on_white(rgb, alpha):
    part = np.asarray(alpha, float)[..., None] / 255
    return rgb * part + 255 * (1 - part)


def close(image, expected, tolerance=1.0):
    return np.abs(np.asarray(image, float) - expected).max() <= tolerance


# Orientation.


# what a reader does to the stored pixels for each orientation, by the table of the EXIF standard (version 2.32, 4.6.4)
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def stored(pixels, image_format, orientation, **options):
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, image_format, exif=exif, **options)
    return Image.open(file)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_images_are_turned_upright(orientation, image_format, options):
    pixels = noise(6, 9, 3)
    image = stored(pixels, image_format, orientation, **options)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), TURNS[orientation](pixels))


@pytest.mark.parametrize(
    "pixels", [noise(6, 9), noise(6, 9, dtype=np.uint16), noise(6, 9) > 99], ids=["L", "I;16", "1"]
)
def test_images_of_other_modes_are_turned_upright(pixels):
    upright, turned = (np.asarray(to_rgb(stored(pixels, "PNG", number))) for number in (1, 6))
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


def test_a_jpeg_from_a_phone_is_turned_upright():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    turned = np.asarray(to_rgb(stored(pixels, "JPEG", 6, quality=95)))
    assert turned.shape == (32, 16, 3) and turned[:14].min() > 200 and turned[18:].max() < 50


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]
)
def test_malformed_metadata_are_ignored(exif):
    file, pixels = io.BytesIO(), noise(6, 9, 3)
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.open(file))), pixels)


def test_a_truncated_file_is_still_an_error():
    file = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(file, "PNG")
    with pytest.raises((OSError, SyntaxError)):
        to_rgb(Image.open(io.BytesIO(file.getvalue()[:5000])))


# Grey levels beyond 8 bits.


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_are_scaled(mode):
    levels = np.concatenate([np.arange(0, 65536, 257), [0, 128, 129, 65406, 65407, 65535] + [40000] * 26])
    data = levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes(mode, (16, 18), data)
    rgb = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(rgb, grey_rgb(np.rint(levels / 65535 * 255)).reshape(18, 16, 3))
    assert rgb.max() == 255 and rgb.min() == 0


@pytest.mark.parametrize(
    ("values", "as_bytes"),
    [
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 100, 200]], np.int32), [0, 128, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**31 - 1]], np.int32), [0, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 0.5, 0.5]], np.float32), [0, 128, 128]),
        (np.array([[0, 0.2, 1.02]], np.float32), [0, 50, 255]),
        (np.array([[0, 2.4, 255]], np.float32), [0, 2, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[-0.25, 0, 0.25]], np.float32), [0, 128, 255]),
        (np.array([[3, 3, 3]], np.float32), [255, 255, 255]),
        (np.array([[-3, -3, -3]], np.float32), [0, 0, 0]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
        (np.array([[-np.inf, 0.2, 1, np.inf]], np.float32), [0, 51, 255, 255]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
    ],
)
def test_32_bit_levels(values, as_bytes):
    rgb = np.asarray(to_rgb(Image.fromarray(values)))
    np.testing.assert_array_equal(rgb, grey_rgb([as_bytes]))


def test_what_is_white():
    def level(values):
        return white_level(Image.fromarray(values))

    assert level(noise(4, 4)) == 255 and level(noise(4, 4, 3)) == 255
    assert level(noise(4, 4, dtype=np.uint16)) == 65535
    assert level(np.float32([[0, 1, np.nan]])) == 1
    assert level(np.float32([[0, 1.001]])) is None and level(np.int32([[0, 1]])) is None


# Transparency.


ALPHA = np.tile(np.array([0, 64, 128, 255], np.uint8), (16, 4))


def test_transparent_pixels_lie_on_white():
    rgb, grey = noise(16, 16, 3), noise(16, 16)
    rgba = Image.fromarray(np.dstack([rgb, ALPHA]))
    assert close(to_rgb(rgba), on_white(rgb, ALPHA))
    assert close(to_rgb(rgba.convert("RGBa")), on_white(rgb, ALPHA), 3)
    la = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(ALPHA)))
    assert close(to_rgb(la), on_white(grey_rgb(grey), ALPHA))
    assert close(to_rgb(la.convert("La")), on_white(grey_rgb(grey), ALPHA), 3)


def test_transparent_palettes_lie_on_white():
    palette = Image.fromarray(noise(16, 16, 3)).quantize(16)
    indices, colors = np.asarray(palette), np.array(palette.getpalette()).reshape(-1, 3)
    assert close(to_rgb(palette), colors[indices], 0)
    alphas = noise(16)
    palette.info["transparency"] = alphas.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(to_rgb(palette), on_white(colors[indices], alphas[indices]))
    palette = Image.fromarray(indices, "P")
    palette.putpalette(np.hstack([colors, alphas[:, None]]).astype(np.uint8).tobytes(), "RGBA")
    assert close(to_rgb(palette), on_white(colors[indices], alphas[indices]))


@pytest.mark.parametrize("pixels", [GREY, np.uint16(GREY) * 257, np.dstack([GREY, GREY, GREY]), GREY > 99])
def test_the_transparent_level_of_a_png_lies_on_white(pixels):
    file, level = io.BytesIO(), pixels[0, 7]
    transparent = tuple(map(int, level)) if pixels.ndim == 3 else int(level)
    Image.fromarray(pixels).save(file, "PNG", transparency=transparent)
    rgb = np.asarray(to_rgb(Image.open(file)))
    expected = np.asarray(to_rgb(Image.fromarray(pixels))).copy()
    expected[(pixels == level).reshape(16, 16, -1).all(-1)] = 255
    np.testing.assert_array_equal(rgb, expected)


@pytest.mark.parametrize(("background", "color"), [("black", 0), ("#808080", 128), ("rgb(9, 9, 9)", 9)])
def test_another_background(background, color):
    assert (np.asarray(to_rgb(Image.new("RGBA", (2, 2)), background)) == color).all()
    check_color("data.background", background)


def test_an_unknown_color_is_refused():
    with pytest.raises(ConfigurationError, match=r"^data.background: 'whit' is not allowed, give a name such as white"):
        check_color("data.background", "whit")


# Other modes.


def test_cmyk():
    cmyk = noise(16, 16, 4)
    ink, black = 255 - cmyk[..., :3].astype(int), 255 - cmyk[..., 3:].astype(int)
    rgb = np.asarray(to_rgb(Image.fromarray(cmyk, "CMYK")))
    assert np.abs(rgb - ink * black / 255).max() <= 1


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I I;16 I;16L I;16B F".split()


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_fails_or_warns(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def smooth():
    """Colors (16, 16, 3) that change slowly, with black and white, and alpha (16, 16)."""
    ramp = np.linspace(0, 255, 16)
    rgb = np.stack([np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.add.outer(ramp, ramp) / 2], axis=-1)
    return rgb.round().astype(np.uint8), np.tile(np.uint8([255, 128, 0, 255]), (16, 4))


def of_mode(mode):
    """An image of a mode, with the colors that it should show, and its alpha."""
    rgb, alpha = smooth()
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    deep = {"I;16": np.uint16(grey) * 257, "I": np.int32(grey) * 257, "F": np.float32(grey) / 255}
    if mode in deep:
        return Image.fromarray(deep[mode]), grey_rgb(grey), alpha
    if mode == "1":
        return Image.fromarray(grey > 127), grey_rgb((grey > 127) * 255), alpha
    if mode == "P":
        return Image.fromarray(grey // 32 * 32).convert("P"), grey_rgb(grey // 32 * 32), alpha
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    if mode == "PA":
        return Image.merge("PA", (of_mode("P")[0], Image.fromarray(alpha))), of_mode("P")[1], alpha
    image = rgba.convert("LA").convert("La") if mode == "La" else rgba.convert(mode)
    return image, grey_rgb(grey) if mode in ("L", "LA", "La") else rgb, alpha


def files_of(image):
    """Files of an image in all formats that Pillow writes without losses, and reads."""
    lossy = {"JPEG", "MPO", "AVIF", "JPEG2000", "ICNS", "GIF"}
    lossy |= {"WEBP"} if image.mode[0] in "IF" else {"SPIDER"}  # clips floats to bytes, and holds nothing but floats
    read = {*formats()} - lossy  # first, for it registers all formats
    for image_format in sorted(read & {*Image.SAVE}):
        file = io.BytesIO()
        try:
            image.save(file, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
        except Exception:
            continue
        yield image_format, Image.open(file)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("I;16L", "I;16B")])
def test_a_file_of_each_mode_that_pillow_writes(mode):
    image, colors, alpha = of_mode(mode)
    written = []
    for image_format, read in files_of(image):
        written.append(image_format)
        expected = on_white(colors, alpha) if read.has_transparency_data else colors
        # 8 bits a channel do not hold all colors
        tolerance = {"LAB": 30, "HSV": 5, "YCbCr": 4}.get(mode, 1)
        assert close(to_rgb(read), expected, tolerance), (image_format, read.mode)
    if mode not in ("La", "RGBa", "HSV"):
        assert written, "no format writes it any more"
