"""The house style of pictures: how a series looks, whoever draws it.

Colours stay apart for readers who see red and green alike: evidence is blue, teal and violet, controls are orange, red
and yellow, and the lightness differs inside a family. Nothing rests on colour alone: theory is dashed, controls have
hollow markers, seeds are faint, and each series of a family has a marker of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..claims.record import Picture, Series

Scheme = Literal["light", "dark"]
RGB = tuple[int, int, int]

PALETTES: dict[Scheme, dict[str, tuple[RGB, ...]]] = {
    "light": {
        "evidence": ((31, 102, 193), (18, 160, 141), (68, 48, 127), (116, 174, 230)),
        "control": ((210, 82, 11), (140, 47, 93), (223, 160, 28)),
        "theory": ((107, 114, 128),),
        "ink": ((28, 32, 40),),
        "quiet": ((94, 101, 114),),
        "grid": ((226, 229, 235),),
    },
    "dark": {
        "evidence": ((91, 157, 240), (99, 216, 192), (212, 189, 251), (58, 99, 200)),
        "control": ((238, 122, 48), (187, 75, 134), (249, 221, 132)),
        "theory": ((139, 147, 161),),
        "ink": ((230, 233, 239),),
        "quiet": ((160, 168, 182),),
        "grid": ((48, 54, 65),),
    },
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


@dataclass(frozen=True)
class Look:
    """How a series is drawn.

    Args:
        family: of the palette.
        shade: which colour of the family.
        dash: "solid", "dash" (theory) or "dot" (a family that has run out of colours).
        symbol: one of SYMBOLS.
        hollow: the marker's inside is empty.
        width: of lines, in pixels.
        opacity: in [0, 1].
    """

    family: str
    shade: int
    dash: str
    symbol: str
    hollow: bool
    width: float
    opacity: float

    def rgb(self, scheme: Scheme = "light") -> RGB:
        """Its colour, 0 to 255 a channel."""
        return PALETTES[scheme][self.family][self.shade]


def looks(picture: Picture) -> list[Look]:
    """A look for each series, in the order of the picture.

    A seed takes the colour of the series whose name its own begins with ("SGDM, seed 3" that of "SGDM"); else that of
    the first evidence. So does theory ("SGDM, predicted"); else it has its own.
    """
    found: dict[int, Look] = {}
    count = {"evidence": 0, "control": 0, "theory": 0}
    for i, series in enumerate(picture.series):
        if series.role != "seed":
            found[i] = _look(series.role, count[series.role])
            count[series.role] += 1
    for i, series in enumerate(picture.series):
        owner = owner_of(series, picture.series) if series.role == "theory" else None
        if owner is not None:
            found[i] = replace(found[i], family=found[owner].family, shade=found[owner].shade)
    return [found.get(i) or _seed(series, picture.series, found) for i, series in enumerate(picture.series)]


def _look(role: str, k: int) -> Look:
    shades = len(PALETTES["light"][role])
    symbol = SYMBOLS[k % len(SYMBOLS)]
    if role == "theory":
        return Look(role, 0, ("dash", "dot", "dashdot")[k % 3], symbol, True, 1.8, 1.0)
    dash = "solid" if k < shades else "dot"
    return Look(role, k % shades, dash, symbol, role == "control", 2.4 if role == "evidence" else 2.0, 1.0)


def owner_of(one: Series, all_series: Sequence[Series]) -> int | None:
    """The evidence or control that a seed, or theory, belongs to: whose name its own begins with, the longest such."""
    owners = [
        i
        for i, s in enumerate(all_series)
        if s.role in ("evidence", "control") and s.name and one.name.startswith(s.name)
    ]
    return max(owners, key=lambda i: len(all_series[i].name), default=None)


def _seed(series: Series, all_series: Sequence[Series], found: dict[int, Look]) -> Look:
    owner = owner_of(series, all_series)
    family, shade = (found[owner].family, found[owner].shade) if owner is not None else ("evidence", 0)
    return Look(family, shade, "solid", "circle", False, 1.0, 0.38)


def mark_dash(k: int) -> str:
    """How the k-th horizontal mark of a picture is drawn."""
    return ("dot", "dashdot", "dash")[k % 3]


def rgba(rgb: RGB, alpha: float = 1.0) -> str:
    """A colour as CSS and plotly read it; always written alike, so that a page can change its scheme."""
    return f"rgba({rgb[0]},{rgb[1]},{rgb[2]},{alpha:g})"


def of(scheme: Scheme, name: str, alpha: float = 1.0) -> str:
    """The first colour of a family, as CSS."""
    return rgba(PALETTES[scheme][name][0], alpha)
