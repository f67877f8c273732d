"""The picture of an echo: accuracy and distance from the outgoing path; out, back, and back perturbed."""

import os
from typing import Any

import matplotlib

from ..files import written_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT, _EXACT, _PERTURBED = "#3b6fb6", "#2a9d5c", "#d1495b"


def draw(run: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw one run as PNG. Time runs to the right: training on the left, winding back on the right."""
    turn, end = run["steps"], 2 * run["steps"]
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, height_ratios=(3, 2), layout="constrained")
    out, back, perturbed = (run.get(k) or [] for k in ("looks_out", "looks_back", "looks_perturbed"))
    accuracy = "test_accuracy"
    top.plot([x["step"] for x in out], [x[accuracy] for x in out], color=_OUT, lw=2, label="training")
    for looks, color, width, label in (  # where the two ways back lie on each other, both are seen
        (perturbed, _PERTURBED, 3.5, "wound back with one parameter changed"),
        (back, _EXACT, 1.8, "wound back exactly"),
    ):
        times = [end - x["step"] for x in looks]
        top.plot(times, [x[accuracy] for x in looks], color=color, lw=width, label=label)
        top.plot(times, [x["train_accuracy"] for x in looks], color=color, lw=1, ls=":")
    top.plot([x["step"] for x in out], [x["train_accuracy"] for x in out], color=_OUT, lw=1, ls=":")
    top.plot([], [], color="0.4", lw=1, ls=":", label="(dotted: on the training set)")
    highest = max((x[k] for x in (*out, *back, *perturbed) for k in (accuracy, "train_accuracy")), default=1.0)
    top.set(ylabel=f"test accuracy\n(share of {run.get('answer', 'right answers')})")
    top.set_ylim(-0.03, min(1.05, 1.2 * highest + 0.05))
    fig.legend(loc="outside lower center", ncols=2, frameon=False)
    top.set_title(
        f"{run['task']}, {run['optimizer']}: {turn:,} steps of training, and the way back", loc="left", fontsize=12
    )
    _distances(bottom, perturbed, back, end)
    ticks = sorted({0, turn // 2, turn, turn + turn // 2, end})
    bottom.set_xticks(ticks, [f"{t if t <= turn else end - t:,}" for t in ticks])
    bottom.set_xlabel("step   (training to the right, then back to step 0)")
    for ax in (top, bottom):
        ax.axvline(turn, color="0.6", lw=1)
        ax.spines[["top", "right"]].set_visible(False)
    place = {"xycoords": top.get_xaxis_transform(), "xytext": (4, 0), "textcoords": "offset points"}
    top.annotate("the turn", (turn, 0.17), **place, color="0.4", rotation=90)
    with written_atomically(path) as temporary:
        fig.savefig(temporary, dpi=130)
    plt.close(fig)


def _distances(ax: Any, perturbed: list[dict], back: list[dict], end: int) -> None:
    """Distance of the parameters from where they were on the way out; a log axis with a place for exactly zero."""
    apart = [(end - x["step"], x["distance"]) for x in perturbed if x.get("distance")]
    floor = min([d for _, d in apart], default=1.0) / 100
    ax.set_yscale("log")
    if apart:
        ax.plot(*zip(*apart, strict=True), color=_PERTURBED, lw=2)
    exact = [(end - x["step"], x.get("distance")) for x in back]
    ax.plot([t for t, d in exact if d == 0], [floor for _, d in exact if d == 0], color=_EXACT, lw=3)
    ax.plot([t for t, d in exact if d], [d for _, d in exact if d], color=_EXACT, lw=2)
    if any(d == 0 for _, d in exact):
        ax.annotate("exactly 0", (end, floor), xytext=(0, 6), textcoords="offset points", ha="right", color=_EXACT)
    ax.set_ylabel("distance from the\npath of training")
    ax.set_ylim(floor / 3, None)
    ax.set_yticks([tick for tick in ax.get_yticks() if floor * 10 < tick <= ax.get_ylim()[1]])
