"""A picture as a plotly figure: one house style, without a legend of its own (the page has one that wraps)."""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from ..claims.record import Picture, Series
from .points import Drawn, drawn
from .style import PALETTES, Look, Scheme, looks, mark_dash, of, rgba

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def figure(picture: Picture, scheme: Scheme = "light") -> Any:
    """The plotly figure of a picture.

    Intervals are bands about lines and bars about points. Each trace carries `meta`: the number of its series, and
    whether it is the series itself or its band, so that a page can show and hide both.

    Returns:
        A `plotly.graph_objects.Figure`.
    """
    from plotly import graph_objects as go

    ready = drawn(picture)
    seen = looks(picture)
    series = ready.picture.series
    order = sorted(range(len(series)), key=lambda i: ("seed", "theory", "control", "evidence").index(series[i].role))
    traces = [band for i in order if (band := _band(i, series[i], seen[i], scheme))]
    traces += [_line(i, series[i], seen[i], scheme, bool(ready.categories)) for i in order]
    traces += _room(ready.picture)
    return go.Figure([go.Scatter(**t) for t in traces], _layout(ready, scheme))


def _has_band(s: Series) -> bool:
    return s.low is not None and s.high is not None and s.mode != "markers"


def _band(i: int, s: Series, look: Look, scheme: Scheme) -> dict[str, Any] | None:
    """A polygon for each stretch without a gap."""
    if not _has_band(s):
        return None
    x: list[float | None] = []
    y: list[float | None] = []
    for run in _runs(s):
        x += [*(s.x[k] for k in run), *(s.x[k] for k in reversed(run)), None]
        y += [*(s.low[k] for k in run), *(s.high[k] for k in reversed(run)), None]
    if not x:
        return None
    return {
        "x": [_short(v) for v in x[:-1]],
        "y": [_short(v) for v in y[:-1]],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": rgba(look.rgb(scheme), 0.16),
        "line": {"width": 0, "color": rgba(look.rgb(scheme), 0)},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"series": i, "part": "band"},
    }


def _runs(s: Series) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for k, (low, high) in enumerate(zip(s.low, s.high, strict=True)):
        if low is None or high is None:
            runs.append([])
        else:
            runs[-1].append(k)
    return [run for run in runs if run]


def _line(i: int, s: Series, look: Look, scheme: Scheme, placed: bool) -> dict[str, Any]:
    color = rgba(look.rgb(scheme))
    number = "%{y:.4~g}"
    trace: dict[str, Any] = {
        "x": [_short(v) for v in s.x],
        "y": [_short(v) for v in s.y],
        "name": _label(s.name),
        "mode": s.mode,
        "opacity": look.opacity,
        "line": {"color": color, "width": look.width, "dash": look.dash},
        "marker": _marker(look, color, placed and s.role == "theory" and s.mode == "markers", s.mode),
        "connectgaps": False,
        "showlegend": False,
        "meta": {"series": i, "part": "line"},
    }
    if s.low is not None and s.high is not None:
        trace["customdata"] = [[_short(a), _short(b)] for a, b in zip(s.low, s.high, strict=True)]
        number += " [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]"
        if s.mode == "markers":
            trace["error_y"] = _bars(s, color)
    at = "" if placed else "<br>at %{x:.6~g}"
    trace["hovertemplate"] = f"{_label(s.name)}<br><b>{number}</b>{at}<extra></extra>"
    return trace


def _marker(look: Look, color: str, dash: bool, mode: str) -> dict[str, Any]:
    symbol = "line-ew-open" if dash else look.symbol + ("-open" if look.hollow else "")
    size = 26 if dash else 9 if mode == "markers" else 7
    return {"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 2}}


def _bars(s: Series, color: str) -> dict[str, Any]:
    up = [0 if v is None or h is None else _short(max(0.0, h - v)) for v, h in zip(s.y, s.high, strict=True)]
    down = [0 if v is None or a is None else _short(max(0.0, v - a)) for v, a in zip(s.y, s.low, strict=True)]
    return {"array": up, "arrayminus": down, "symmetric": False, "color": color, "thickness": 1.6, "width": 5}


def _short(v: float | None) -> float | None:
    """Six digits are enough for a page; whole numbers stay as they are."""
    return v if v is None or isinstance(v, int) else float(f"{v:.6g}")


def _layout(ready: Drawn, scheme: Scheme) -> dict[str, Any]:
    picture = ready.picture
    ink, quiet, grid = (of(scheme, name) for name in ("ink", "quiet", "grid"))
    axis = {
        "gridcolor": grid,
        "linecolor": quiet,
        "tickcolor": quiet,
        "tickfont": {"color": quiet, "size": 12},
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "exponentformat": "power",
        "minexponent": 6,
        "separatethousands": True,
    }
    x = axis | {"showgrid": False, "showline": True, "nticks": 8}
    if picture.x:
        x |= {"title": {"text": _wrapped(picture.x, 52), "standoff": 10, "font": {"size": 13}}}
    y = axis | {"ticks": "", "nticks": 7, "showline": False}
    if ready.categories:
        x |= {"tickvals": list(range(len(ready.categories))), "ticktext": [_wrapped(c, 14) for c in ready.categories]}
        x |= {"range": [-0.6, len(ready.categories) - 0.4]}
    elif "x" in picture.log:
        x |= {"type": "log"} | _decades([v for s in picture.series for v in s.x])
    if "y" in picture.log:
        values = [v for s in picture.series for row in (s.y, s.low or (), s.high or ()) for v in row if v is not None]
        y |= {"type": "log"} | _decades([*values, *(v for v in picture.marks.values() if v > 0)])
    return {
        "template": "none",
        "font": {"family": FONT, "size": 13, "color": ink},
        "title": {
            "text": _wrapped(picture.y, 46),
            "font": {"size": 13, "color": ink},
            **{"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
            **{"pad": {"t": 6, "l": 2}, "automargin": True},
        },
        "xaxis": x,
        "yaxis": y,
        "margin": {"l": 8, "r": 14, "t": 34, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
        "dragmode": False,
        **_marks(picture, scheme),
    }


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at whole decades, at most seven; fewer than one and a half: plotly's own."""
    positive = [v for v in values if v > 0]
    wide = math.log10(max(positive) / min(positive)) if positive else 0
    return {"dtick": max(1, math.ceil(wide / 7)), "nticks": 0} if wide >= 1.5 else {}


def _marks(picture: Picture, scheme: Scheme) -> dict[str, Any]:
    """Horizontal lines; what they say is in the legend, where it covers nothing."""
    log, quiet = "y" in picture.log, of(scheme, "quiet")
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1}
    lines = [(v, mark_dash(i)) for i, v in enumerate(picture.marks.values()) if v > 0 or not log]
    shapes = [across | {"y0": v, "y1": v, "line": {"color": quiet, "width": 1.4, "dash": dash}} for v, dash in lines]
    return {"shapes": shapes}


def _room(picture: Picture) -> list[dict[str, Any]]:
    """Invisible points on the marks, so that the vertical axis leaves room about them."""
    x = max((s.x for s in picture.series), key=len, default=[])
    y = [v for v in picture.marks.values() if v > 0 or "y" not in picture.log]
    if not y or not x:
        return []
    unseen = {"mode": "markers", "opacity": 0, "hoverinfo": "skip", "showlegend": False, "marker": {"size": 12}}
    return [unseen | {"x": [sorted(x)[len(x) // 2]] * len(y), "y": y, "meta": {"series": -1, "part": "room"}}]


def _label(text: str) -> str:
    return html.escape(text, quote=False)


def _wrapped(text: str, width: int) -> str:
    return "<br>".join(_label(line) for line in textwrap.wrap(text, width) or [""])


def recolour(scheme: Scheme = "dark") -> dict[str, str]:
    """From each colour of the light scheme, as "r,g,b", to that of another: all that a page needs to change over."""
    light, other = PALETTES["light"], PALETTES[scheme]
    pairs = [(a, b) for name in light for a, b in zip(light[name], other[name], strict=True)]
    return {",".join(map(str, a)): ",".join(map(str, b)) for a, b in pairs}
