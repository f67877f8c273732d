"""The same picture on paper: drawn by matplotlib, for README and docs."""

import os
import textwrap
from typing import Any

from ..claims.record import Picture
from ..files import written_atomically
from .points import Drawn, drawn
from .style import PALETTES, Look, Scheme, looks, mark_dash
from .words import number

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "star": "*"}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_ORDER = {"seed": 1, "theory": 2, "control": 3, "evidence": 4}


def draw(picture: Picture, path: str | os.PathLike, scheme: Scheme = "light") -> None:
    """Write a picture as PNG, 1170 pixels wide.

    Raises:
        NotWritten: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ready = drawn(picture)
    ink, quiet, grid = (_unit(PALETTES[scheme][name][0]) for name in ("ink", "quiet", "grid"))
    paper = "white" if scheme == "light" else "#14171c"
    fig, ax = plt.subplots(figsize=(9, 5.2), layout="constrained", facecolor=paper)
    ax.set_facecolor(paper)
    _series(ax, ready, looks(picture), scheme)
    _axes(ax, ready, ink, quiet, grid)
    for k, (words, value) in enumerate(picture.marks.items()):
        if value > 0 or "y" not in picture.log:
            ax.axhline(value, color=quiet, lw=1.2, ls=_DASHES[mark_dash(k)], label=words)
    fig.suptitle(textwrap.fill(picture.title, 80), x=0.01, ha="left", fontsize=13, color=ink, fontweight="bold")
    if ax.get_legend_handles_labels()[0]:
        fig.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9.5, labelcolor=ink)
    with written_atomically(path) as temporary:
        fig.savefig(temporary, dpi=130)
    plt.close(fig)


def _series(ax: Any, ready: Drawn, seen: list[Look], scheme: Scheme) -> None:
    labelled = set()
    for s, look in zip(ready.picture.series, seen, strict=True):
        color, z = _unit(look.rgb(scheme)), _ORDER[s.role]
        y = [float("nan") if v is None else v for v in s.y]
        name = s.name if s.role != "seed" else "each seed"
        style = {"color": color, "alpha": look.opacity, "lw": 0.75 * look.width, "zorder": z, "ms": 6}
        style |= {"ls": _DASHES[look.dash] if "lines" in s.mode else ""}
        if "markers" in s.mode:
            style |= {"marker": _MARKERS[look.symbol], "mfc": "none" if look.hollow else color}
        if ready.categories and s.role == "theory" and s.mode == "markers":
            style |= {"marker": "_", "ms": 22, "mew": 2, "ls": ""}
        ax.plot(s.x, y, label=None if name in labelled else name, **style)
        labelled.add(name)
        if s.low is None or s.high is None:
            continue
        low, high = ([float("nan") if v is None else v for v in row] for row in (s.low, s.high))
        if s.mode == "markers":
            ax.vlines(s.x, low, high, color=color, lw=1.4, zorder=z)
        else:
            ax.fill_between(s.x, low, high, color=color, alpha=0.16, lw=0, zorder=z - 0.5)


def _axes(ax: Any, ready: Drawn, ink: Any, quiet: Any, grid: Any) -> None:
    picture = ready.picture
    if ready.categories:
        ax.set_xticks(range(len(ready.categories)), [textwrap.fill(c, 14) for c in ready.categories])
        ax.set_xlim(-0.6, len(ready.categories) - 0.4)
    elif "x" in picture.log:
        ax.set_xscale("log")
    if "y" in picture.log:
        ax.set_yscale("log")
    ax.set_title(picture.y, loc="left", fontsize=10.5, color=ink)
    ax.set_xlabel(picture.x, color=ink)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(quiet)
    ax.tick_params(colors=quiet, which="both")
    ax.tick_params(axis="y", which="both", length=0)
    ax.tick_params(axis="x", which="minor", length=0)
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if name not in picture.log and not (name == "x" and ready.categories):
            axis.set_major_formatter(lambda v, _: number(v))
    ax.grid(axis="y", color=grid, lw=0.8)
    ax.set_axisbelow(True)


def _unit(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(v / 255 for v in rgb)
