"""The pictures of the arrow."""

from collections.abc import Mapping, Sequence
from typing import Any

from .arrow_judge import grid
from .arrow_rule import OUTCOMES, PREDICTED, THRESHOLDS, calibration, left_out, pairs
from .record import Evidence, Picture, Series
from .return_rule import THRESHOLDS as RETURNS
from .return_rule import share

_T = {**RETURNS, **THRESHOLDS}


def pictures(evidence: Evidence) -> list[Picture]:
    """Return probability over size and turn beside its prediction; calibration; distances at the onset."""
    if not evidence.get(PREDICTED) or not grid(evidence, left_out(evidence, _T)):
        return []
    rows = {which: pairs(evidence, which, _T) for which in OUTCOMES}
    drawn = [_probability(rows["returns"]), _calibration(rows), _distances(rows["un-generalises"])]
    return [picture for picture in drawn if any(s.x for s in picture.series)]


def _probability(rows: Sequence[Mapping[str, Any]]) -> Picture:
    series = []
    names = sorted({r["turn"] for r in rows}, key=lambda name: min(r["turn_step"] for r in rows if r["turn"] == name))
    for kind, role in (("random", "evidence"), ("gauge", "control")):
        for name in names:
            own = [r for r in rows if r["turn"] == name and r["kind"] == kind]
            sizes = sorted({r["size"] for r in own})
            y = [share(r["y"] for r in own if r["size"] == size) for size in sizes]
            p = [share(r["p"] for r in own if r["size"] == size) for size in sizes]
            label = name if kind == "random" else f"{name}, gauge direction"
            series.append(Series(label, sizes, y, role=role, mode="lines+markers"))
            if kind == "random":
                series.append(Series(f"{name}, predicted", sizes, p, role="theory"))
    return Picture(
        title="Return probability",
        caption=(
            "Share of ways back, over seeds and directions, whose function came back to the start's; over the size of "
            "the nudge at the turn, a line for each turn (in units of the onset). Dashed: as predicted from forward "
            "tangent maps before. If only the turn mattered, lines would be flat; along a symmetry all return."
        ),
        x="perturbation, relative to the parameters",
        y="share of returns",
        series=[s for s in series if s.x],
        log="x",
    )


def _calibration(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    series = [Series("perfect", [0.0, 1.0], [0.0, 1.0], role="theory")]
    for which, several in rows.items():
        bins = calibration(several)
        x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
        series.append(Series(which, x, y, mode="lines+markers"))
    return Picture(
        title="Calibration",
        caption=(
            "Share of ways back that did what was predicted, over the predicted probability, in bins. A prediction "
            "that knows nothing gives a flat line; one too sure of itself an S."
        ),
        x="predicted probability",
        y="observed share",
        series=series,
    )


def _distances(rows: Sequence[Mapping[str, Any]]) -> Picture:
    own = [r for r in rows if r["kind"] == "random" and r["predicted"] and r["measured"]]
    series = []
    for name, y in (("un-generalised on its way", 1.0), ("did not", 0.0)):
        group = [r for r in own if r["y"] == y]
        series.append(Series(name, [r["predicted"] for r in group], [r["measured"] for r in group], mode="markers"))
    ends = [min((r["predicted"] for r in own), default=1e-9), 1.0]
    series.append(Series("as predicted", ends, ends, role="theory"))
    return Picture(
        title="Distance at the onset, predicted and measured",
        caption=(
            "Each point is a way back: how far from the way out it was at the step of the onset. On the line small "
            "perturbations grew as the tangent map says; above it something that no tangent map sees."
        ),
        x="predicted relative distance",
        y="measured relative distance",
        series=[s for s in series if s.x],
        log="xy",
    )
