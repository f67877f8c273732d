"""Pictures of claim 11: the energy of free runs, heat by step and batch size, the energy of cooled runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .record import Evidence, Picture, Series
from .statistics import mean

Seeds = Sequence[Mapping[str, Any]]

LONG = {
    "with replacement": "evidence",
    "without replacement": "evidence",
    "full batch": "control",
    "full batch, half the step": "control",
}
COOLED = {"free": "evidence", "rescale": "evidence", "friction": "evidence", "rescale, full batch": "control"}
STARTS = {"from rest": "|p|^2 small", "heated": "|p|^2 large"}


def pictures(evidence: Evidence) -> list[Picture]:
    """The deciding one first; a part without evidence has none."""
    found = []
    if growth := evidence.get("growth"):
        title = "Energy of ECD with small batches, and with the full batch"
        caption = (
            "H on the average over batches, mean over seeds with its interval. Time on a logarithmic axis, so that "
            "growth like log t is a straight line. Without heating the curves of small batches would lie on those of "
            "the full batch; with a constant rate they would bend up without end."
        )
        found.append(Picture(title, caption, "time (steps times dt)", "H (nats)", _runs(growth, LONG), log="x"))
    for axis, x, words in (("dt", "dt", "step"), ("batch", "batch size", "batch size")):
        series = [s for part, name in STARTS.items() for s in _rows(evidence.get(part, ()), axis, name)]
        if series:
            title = f"Heat a step against {words}"
            caption = (
                "Measured beyond the full batch, and dashed what the formula predicts from the covariance of batches' "
                "gradients along the same runs. Without heating there would be nothing but scatter about zero."
            )
            found.append(Picture(title, caption, x, "heat (nats a step)", series, log="xy"))
    if cooling := evidence.get("cooling"):
        title = "Energy of cooled runs"
        caption = (
            "H on the average over batches, free and with two thermostats. Rescaling holds H, on the batch of each "
            "step, at what it was; a constant friction leads to where it takes out as much as the noise puts in. A "
            "thermostat that fails would rise with the free run."
        )
        found.append(Picture(title, caption, "time (steps times dt)", "H (nats)", _runs(cooling, COOLED)))
    return found


def _runs(seeds: Seeds, roles: Mapping[str, str]) -> list[Series]:
    """H on mean of each arm, over seeds; the look at time 0 is left out (it has no logarithm)."""
    series = []
    for name, role in roles.items():
        arms = [seed["arms"][name] for seed in seeds]
        dt = seeds[0]["dt"] / (2 if name.endswith("half the step") else 1)
        times = [step * dt for step in arms[0]["steps"][1:]]
        middle, low, high = _band([arm["mean"][1:] for arm in arms])
        series.append(Series(name, times, middle, low, high, role))
        if role == "evidence":
            series += [
                Series(f"{name}, seed {s['seed']}", times, a["mean"][1:], role="seed")
                for s, a in zip(seeds, arms, strict=True)
            ]
    return series


def _rows(seeds: Seeds, axis: str, name: str) -> list[Series]:
    """Heat a step of one start against dt (at one batch size), or against batch size (at one dt)."""
    if not seeds:
        return []
    tables = [along(seed, axis) for seed in seeds]
    x = [row[axis] for row in tables[0]]

    def each(of: Callable[[Mapping[str, Any]], float]) -> list[list[float]]:
        return [[of(row) for row in table] for table in tables]

    middle, low, high = _band(each(lambda row: row["heat"] / row["steps"]))
    theory, _, _ = _band(each(lambda row: row["predicted"] / row["steps"]))
    measured = Series(name, x, _positive(middle), _positive(low), _positive(high), "evidence", "markers")
    return [measured, Series(f"{name}, predicted", x, _positive(theory), role="theory")]


def along(seed: Mapping[str, Any], axis: str) -> list[Mapping[str, Any]]:
    """Rows of a grid that differ in `axis` ("dt" or "batch") alone, in order."""
    other = "batch" if axis == "dt" else "dt"
    kept = seed["settings"]["batch" if axis == "dt" else "dt"]
    return sorted((row for row in seed["rows"] if row[other] == kept), key=lambda row: row[axis])


def _band(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float | None], list[float | None]]:
    found = [mean(values) for values in zip(*curves, strict=True)]
    bounds = [e.interval or (None, None) for e in found]
    return [e.value for e in found], [low for low, _ in bounds], [high for _, high in bounds]


def _positive(values: Sequence[float | None]) -> list[float | None]:
    """For a logarithmic axis."""
    return [v if v is not None and v > 0 and math.isfinite(v) else None for v in values]
