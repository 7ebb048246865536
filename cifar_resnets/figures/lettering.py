"""Writes text into pictures, also where it is too long, or has letters that the font lacks."""

import functools

from PIL import ImageDraw, ImageFont

Color = tuple[int, int, int]
Drawing = ImageDraw.ImageDraw

SMALL = 18  # the least size of letters where text is long


def shown_name(name: str, number: int) -> str:
    """Returns a class' name on one line, with its number where the font lacks letters of the name."""
    name = " ".join(name.split())
    known = "".join(letter for letter in name if ord(letter) in _letters())
    return name if known == name and name else " ".join(f"class {number} {known}".split())


def write_line(
    draw: Drawing, at: tuple[float, float], text: str, size: int, color: Color, width: float, anchor: str = "lm"
) -> None:
    """Writes one line, in smaller letters where it is too wide, and cut where that is not enough."""
    while size > SMALL and font(size).getlength(text) > width:
        size -= 1
    letters = font(size)
    if letters.getlength(text) > width:
        while text and letters.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(at, text, fill=color, font=letters, anchor=anchor)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns letters of a size in pixels."""
    return ImageFont.truetype(_font_file(), size)


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


def _font_file() -> str:
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # Pillow's own font has few letters beyond Latin
