"""Numbers and pictures in words: for tables, and for readers who do not see the picture."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..claims.record import Picture, Series
from .points import drawn

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ARXIV = re.compile(r"(?<![\d./])(\d{4}\.\d{4,5}(?:v\d+)?|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?![\d.]*\d)", re.I)
_DOI = re.compile(r"(?:doi:\s*|https?://doi\.org/)?(10\.\d{4,9}/\S+)", re.I)


def number(value: Any, digits: int = 4) -> str:
    """A number for a table: so many significant digits, powers of ten where they are shorter; "-" for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa} × 10{str(int(power)).translate(_RAISED)}"
    return text.replace("-", "−")


def digits(pair: Sequence[float] | None) -> int:
    """How many digits a number with this interval is given: four, or up to six where they tell the ends apart."""
    return next((k for k in (4, 5, 6) if pair and number(pair[0], k) != number(pair[1], k)), 4)


def interval(pair: Sequence[float] | None) -> str:
    """[low, high], or "-"."""
    return "–" if not pair else f"[{number(pair[0], digits(pair))}, {number(pair[1], digits(pair))}]"


def opening(text: str) -> str:
    """With a capital letter, as a sentence or a title begins."""
    return text[:1].upper() + text[1:]


def duration(seconds: float | None) -> str:
    """Seconds in words that a person would use."""
    if seconds is None:
        return "–"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def link(reference: str) -> str | None:
    """The address of a paper whose arXiv id or DOI the text contains; None if it has neither."""
    if found := _ARXIV.search(reference):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := _DOI.search(reference):
        return f"https://doi.org/{found[1].rstrip('.,;)')}"
    return reference if re.match(r"https?://\S+$", reference) else None


def alternative(picture: Picture) -> str:
    """What a picture shows, as text: axes, then the ends and extremes of each series."""
    ready = drawn(picture)
    seeds = [s for s in ready.picture.series if s.role == "seed"]
    rest = [s for s in ready.picture.series if s.role != "seed"]
    log = " and ".join({"x": "horizontal", "y": "vertical"}[axis] for axis in picture.log)
    parts = [f"{picture.title}. Vertical: {picture.y}."]
    parts += [f"Horizontal: {picture.x}."] if picture.x else []
    parts += [f"Logarithmic: {log}."] if log else []
    parts += [_told(s, ready.categories) for s in rest]
    parts += [f"{len(seeds)} faint lines, one for each seed."] if seeds else []
    parts += [f"A horizontal line at {number(v)}: {words}." for words, v in picture.marks.items()]
    return " ".join(parts)


def _told(s: Series, categories: Sequence[str]) -> str:
    points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if y is not None]
    role = "" if s.role == "evidence" else f" ({s.role})"
    if not points:
        return f"{s.name}{role}: no points."
    if categories:
        at = "; ".join(f"{categories[round(x)]}: {number(y)}" for x, y in points[:12])
        return f"{s.name}{role}: {at}{'; ...' if len(points) > 12 else ''}."
    (x0, first), (x1, last) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    return (
        f"{s.name}{role}: from {number(first)} at {number(x0)} to {number(last)} at {number(x1)}, "
        f"between {number(low)} and {number(high)}."
    )
