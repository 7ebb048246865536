"""Numbers as text, with units."""

import math
from dataclasses import dataclass

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "–"


@dataclass(frozen=True)
class Fact:
    """A line of a list: name, value with unit, and a remark."""

    name: str
    value: str
    note: str = ""


def percent(part: float | None, digits: int = 2) -> str:
    """Formats a proportion in per cent."""
    return MISSING if part is None or not math.isfinite(part) else f"{100 * part:.{digits}f}{SPACE}%"


def interval(ends: tuple[float, float] | None) -> str:
    """Formats two proportions in per cent."""
    return MISSING if ends is None else f"{100 * ends[0]:.2f} – {100 * ends[1]:.2f}{SPACE}%"


def points(change: float) -> str:
    """Formats a change of an accuracy in percentage points, with its sign."""
    return f"{100 * change:+.2f}".replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
    """Formats a number with so many digits behind the point."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Formats a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02}{SPACE}s"
    return f"{minutes // 60:,}{SPACE}h {minutes % 60:02}{SPACE}min"


def p_text(p_value: float) -> str:
    """Formats a p-value with as many digits as are usual."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.3f}"


def joined(*parts: str) -> str:
    """Returns the parts that are not empty, separated by commas."""
    return ", ".join(part for part in parts if part)
