"""The pictures of the arrow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import arrow_grokked
from .arrow_held import BOTH, sound_rows
from .arrow_judge import grid
from .arrow_rule import OUTCOMES, PREDICTED, THRESHOLDS, calibration, left_out
from .arrow_score import counted, rows
from .record import Evidence, Picture, Series
from .return_pictures import distances
from .return_rule import THRESHOLDS as RETURNS
from .return_rule import share

_T = {**RETURNS, **THRESHOLDS}


def pictures(evidence: Evidence) -> list[Picture]:
    """Return probability beside its prediction; both directions of time; distances at the onset; calibration."""
    grokked = arrow_grokked.picture(evidence)
    last = [] if grokked is None else [grokked]
    out = left_out(evidence, _T)
    if not evidence.get(PREDICTED) or not grid(evidence, out):
        return last
    kept, _ = counted(evidence)
    several = {which: rows(kept, which, _T) for which in OUTCOMES}
    both = [seen for seen in evidence.get(BOTH, ()) if seen["arms"] and seen["seed"] not in out]
    drawn = [_probability([*several["returns"], *rows(kept, "returns", _T, "gauge")]), _both_ways(both)]
    drawn += [_distances(rows(kept, "un-generalises", {**_T, "generalised": 0.0})), _calibration(several)]
    return [picture for picture in drawn if any(s.x for s in picture.series)] + last


def _probability(several: Sequence[Mapping[str, Any]]) -> Picture:
    series = []
    names = sorted(
        {r["turn"] for r in several}, key=lambda turn: min(r["turn_step"] for r in several if r["turn"] == turn)
    )
    for name in names:
        own = [r for r in several if r["turn"] == name and r["kind"] == "random"]
        sizes, series_of = _over_size(own)
        turn = f"turn at {name}" if name[0].isdigit() else name
        series.append(Series(turn, sizes, series_of("y"), mode="lines+markers"))
        series.append(Series(f"{turn}, predicted", sizes, series_of("p"), role="theory"))
    sizes, series_of = _over_size([r for r in several if r["kind"] == "gauge"])
    series.append(Series("along a symmetry, all turns", sizes, series_of("y"), role="control", mode="lines+markers"))
    return Picture(
        title="Return probability",
        caption=(
            "Share of ways back, over seeds and directions, whose function came back to the start's; over the size of "
            "the nudge at the turn, a line for each turn (in units of the onset). Dashed: as predicted from forward "
            "tangent maps before. If only the turn mattered, lines would be flat. A rotation of queries and keys "
            "leaves the function as it is, and what it misses the circle by is second order in its size."
        ),
        x="perturbation, relative to the parameters",
        y="share of returns",
        series=[s for s in series if s.x],
        log="x",
    )


def _over_size(several: Sequence[Mapping[str, Any]]) -> tuple[list[float], Callable[[str], list[float | None]]]:
    """Sizes, and means of a column at each."""
    sizes = sorted({r["size"] for r in several})
    return sizes, lambda key: [share(r[key] for r in several if r["size"] == size) for size in sizes]


def _both_ways(several: Sequence[Mapping[str, Any]]) -> Picture:
    """A line for each state begun from, forward to the right and backward to the left; the first seed's stand out."""
    series = []
    for arm, role in (("turn before the onset", "evidence"), ("memoriser", "control")):
        orbits = [(seen["seed"], row) for seen in several for row in sound_rows(seen, arm, _T)]
        for i, (seed, row) in enumerate(orbits):
            back, forward = row["back"], row["forward"]
            steps = [-step for step in back["step"][::-1]] + forward["step"]
            name = f"from a {arm}, seed {seed}, {row['draw']}" if i else f"from a {arm}"
            series.append(Series(name, steps, back["test"][::-1] + forward["test"], role="seed" if i else role))
    return Picture(
        title="Both directions of time",
        caption=(
            "Test accuracy along runs that begin at 0 in a state that has not generalised, and go on forward (right) "
            "and backward (left): a memoriser with random momenta, and a perturbed turn before the onset, whose past "
            "is near the mirror image of its future. If generalising took friction, or a start of one's own choice, "
            "the lines of the memorisers would stay down."
        ),
        x="steps from the beginning; below 0: backward in time",
        y="test accuracy",
        series=series,
        marks={"generalised": _T["generalised"]},
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


def _distances(several: Sequence[Mapping[str, Any]]) -> Picture:
    points = [(r["predicted"], r["measured"], r["y"] == 1.0) for r in several]
    return distances(points, "Distance at the onset, predicted and measured", _T["onset distance"])
