"""What a picture draws: series as numbers, thinned to what a page can carry, categories as places on an axis."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..claims.record import Picture, Series

MOST_POINTS = 4_000  # of all lines of a picture together; 50 to 100 kB of a page
LEAST_POINTS = 60  # of a line, however many there are


@dataclass(frozen=True)
class Drawn:
    """A picture ready to be drawn.

    Args:
        picture: its series with x as numbers, and nothing that a logarithmic axis cannot show.
        categories: names of the places 0, 1, ... on the x axis; empty if it is an axis of numbers.
        floor: on a logarithmic y axis, the smallest number that is shown.
        left_out: how many points a logarithmic axis could not show.
        thinned: how many points were left out for size: of each stretch of a line its ends and extremes stay.
    """

    picture: Picture
    categories: tuple[str, ...]
    floor: float | None
    left_out: int
    thinned: int


def drawn(picture: Picture, most: int = MOST_POINTS) -> Drawn:
    """Make a picture ready. Pure; never changes what a line's extremes are."""
    series = [_plain(s) for s in picture.series]
    categories = _categories(series)
    if categories:
        series = _placed(series, categories)
    before = _shown(series)
    if "x" in picture.log:
        series = [_select(s, [i for i, x in enumerate(s.x) if x > 0]) for s in series]
    floor = None
    if "y" in picture.log:
        floor = min(_positive(series, picture), default=1.0)
        series = [_above(s, floor) for s in series]
    series = [_visible(s) for s in series]
    after = _shown(series)
    room = max(LEAST_POINTS, most // max(1, len(series)))
    series = [_thin(s, room) for s in series]
    return Drawn(replace(picture, series=series), categories, floor, before - after, after - _shown(series))


def _plain(s: Series) -> Series:
    """Lists of one length; a y that is no finite number is a gap, a point whose x is none is nowhere."""
    x = list(s.x)
    cut = [_numbers(values, len(x)) for values in (s.y, s.low, s.high)]
    somewhere = [i for i, v in enumerate(x) if isinstance(v, str) or (v is not None and abs(v) < float("inf"))]
    return _select(replace(s, x=x, y=cut[0], low=cut[1], high=cut[2]), somewhere)


def _numbers(values: Sequence[float | None] | None, n: int) -> list[float | None] | None:
    if values is None:
        return None
    kept = [None if v is None or not abs(v) < float("inf") else float(v) for v in values]
    return (kept + [None] * n)[:n]


def _shown(series: Sequence[Series]) -> int:
    return sum(y is not None for s in series for y in s.y)


def _categories(series: Sequence[Series]) -> tuple[str, ...]:
    if not any(isinstance(x, str) for s in series for x in s.x):
        return ()
    return tuple(dict.fromkeys(str(x) for s in series for x in s.x))


def _placed(series: Sequence[Series], categories: Sequence[str]) -> list[Series]:
    """Each at its category, a little beside the others, so that intervals do not hide each other."""
    beside = [i for i, s in enumerate(series) if s.role in ("evidence", "control") and s.mode != "lines"]
    wide = min(0.16, 0.5 / max(1, len(beside)))
    shift = {i: wide * (k - (len(beside) - 1) / 2) for k, i in enumerate(beside)}
    place = {name: k for k, name in enumerate(categories)}
    return [replace(s, x=[round(place[str(x)] + shift.get(i, 0.0), 4) for x in s.x]) for i, s in enumerate(series)]


def _positive(series: Sequence[Series], picture: Picture) -> list[float]:
    values = [v for s in series for row in (s.y, s.low or ()) for v in row if v is not None and v > 0]
    return values + [v for v in picture.marks.values() if v > 0]


def _above(s: Series, floor: float) -> Series:
    """Points that are not positive become gaps; an interval that reaches down to them ends at the floor."""
    y = [v if v is not None and v > 0 else None for v in s.y]
    low = None if s.low is None else [None if v is None else max(v, floor) for v in s.low]
    high = None if s.high is None else [None if v is None or v <= 0 else v for v in s.high]
    return replace(s, y=y, low=low, high=high)


def _visible(s: Series) -> Series:
    """With markers, if there is a point between gaps, of which a line shows nothing."""
    around = [None, *s.y, None]
    alone = any(b is not None and a is None and c is None for a, b, c in zip(around, s.y, around[2:], strict=False))
    return replace(s, mode="lines+markers") if s.mode == "lines" and alone else s


def _select(s: Series, kept: Sequence[int]) -> Series:
    parts = {k: None if v is None else [v[i] for i in kept] for k, v in (("low", s.low), ("high", s.high))}
    return replace(s, x=[s.x[i] for i in kept], y=[s.y[i] for i in kept], **parts)


def _thin(s: Series, most: int) -> Series:
    """Of each stretch the ends, the lowest and the highest point; a gap stays a gap."""
    if len(s.x) <= most or len(set(map(type, s.x)) - {int, float}):
        return s
    stretches = max(1, most // 4)
    edges = [round(k * len(s.x) / stretches) for k in range(stretches + 1)]
    kept: set[int] = set()
    for start, end in pairwise(edges):
        there = [i for i in range(start, end) if s.y[i] is not None]
        gaps = [i for i in range(start, end) if s.y[i] is None][:1]
        kept |= {start, end - 1, *gaps}
        if there:
            kept |= {min(there, key=lambda i: s.y[i]), max(there, key=lambda i: s.y[i])}
    return _select(s, sorted(kept))
