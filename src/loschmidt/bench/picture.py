"""The picture of a bench: ratios beside torch with the targets, ways back, growth."""

import os
from collections.abc import Callable
from typing import Any

import matplotlib

from ..files import written_atomically
from .table import two_lines

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Found = dict[str, Any]

_BLUES = ("#a9c4e4", "#3b6fb6", "#1d3d6b", "#7a7a7a")
_TARGET, _OURS, _OTHER = "#d1495b", "#2a9d5c", "0.5"


def draw(results: Found, path: str | os.PathLike) -> bool:
    """Draw what was measured as PNG: a panel for each of steps, alternatives and growth.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    panels = [(draw, results["sections"][name]) for name, draw in _PANELS.items() if _any(results, name)]
    if not panels:
        return False
    widths = [1.5 if draw is _ratios else 1 for draw, _ in panels]
    fig, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * sum(widths), 4.4), width_ratios=widths, layout="constrained", squeeze=False
    )
    for ax, (panel, found) in zip(axes[0], panels, strict=True):
        panel(ax, found)
        ax.spines[["top", "right"]].set_visible(False)
    with written_atomically(path) as temporary:
        fig.savefig(temporary, dpi=130)
    plt.close(fig)
    return True


def _any(results: Found, name: str) -> bool:
    found = results["sections"].get(name, {})
    return bool(found.get("rows") or any(curve["points"] for curve in found.get("curves", ())))


def _ratios(ax: Any, found: Found) -> None:
    rows = found["rows"]
    names, sizes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("optimizer", "parameters"))
    wide = 0.8 / len(sizes)
    for i, count in enumerate(sizes):
        mine = [row for row in rows if row["parameters"] == count]
        at = [names.index(row["optimizer"]) - 0.4 + wide * (i + 0.5) for row in mine]
        x = [row["step_over_fused"] for row in mine]
        spread = [[r["median"] - r["min"] for r in x], [r["max"] - r["median"] for r in x]]
        error = {"lw": 0.8, "ecolor": "0.3"}
        heights = [r["median"] for r in x]
        color = _BLUES[i % len(_BLUES)]
        ax.bar(at, heights, 0.92 * wide, yerr=spread, error_kw=error, color=color, label=f"{count:,} parameters")
    targets = {row["optimizer"]: row["target_over_fused"] for row in rows}
    for name, target in targets.items():
        x = names.index(name)
        ax.plot([x - 0.44, x + 0.44], [target] * 2, color=_TARGET, lw=2, label="target at 10 M" if not x else None)
    ax.axhline(1, color="0.6", lw=1, ls=":")
    ax.set_xticks(range(len(names)), [two_lines(name) for name in names])
    ax.set_ylabel("step / step of torch, fused")
    top = max(*targets.values(), *(row["step_over_fused"]["median"] for row in rows))
    ax.set_ylim(0, 1.4 * top)
    ax.set_title("An optimizer's step (median; lines: min to max)", loc="left", fontsize=11)
    ax.legend(framealpha=1.0, edgecolor="none", fontsize=9, ncol=2, loc="upper center")


def _ways(ax: Any, found: Found) -> None:
    for i, row in enumerate(sorted(found["rows"], key=lambda r: r["bytes_per_parameter_step"])):
        x, y = row["bytes_per_parameter_step"], row["sweep_seconds"]
        color = _OURS if row["way"] == "tape" else _OTHER
        ax.plot(x, y, "o", color=color, ms=8)
        ax.annotate(
            row["way"], (x, y), xytext=(0, -16 if i % 2 else 8), textcoords="offset points", ha="center", color=color
        )
    ax.set(xscale="log", yscale="log", xlabel="bytes per parameter per step")
    ax.margins(0.25)
    ax.set_ylabel(f"seconds back over {found['rows'][0]['steps']} steps")
    ax.set_title("Ways back", loc="left", fontsize=11)


def _growth(ax: Any, found: Found) -> None:
    for curve, color in zip(found["curves"], (_BLUES[1], _OURS), strict=False):
        points = curve["points"]
        for key, style, whose in (("step", "o-", ""), ("fused", ".:", ", torch fused")):
            fit = curve.get("ours" if key == "step" else "fused")
            label = curve["optimizer"] + whose + (f": exponent {fit['slope']:.2f}" if fit else "")
            x = [p["parameters"] for p in points]
            ax.plot(x, [p["seconds"][key]["median"] for p in points], style, color=color, label=label)
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="seconds of an optimizer's step")
    ax.set_title("Growth", loc="left", fontsize=11)
    ax.legend(frameon=False, fontsize=9)


_PANELS: dict[str, Callable[[Any, Found], None]] = {"steps": _ratios, "alternatives": _ways, "growth": _growth}
