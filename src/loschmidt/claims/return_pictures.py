"""The pictures of claim 10."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .record import Evidence, Picture, Series
from .return_rule import FLOATS, FRICTION, GRID, THRESHOLDS, left_out, predicted_distance, returned, share


def pictures(evidence: Evidence) -> list[Picture]:
    """Returns over size and turn; test accuracy along the way back; the prediction; the error of floats."""
    t = THRESHOLDS
    out = left_out(evidence, t)
    grid = [seen for seen in evidence.get(GRID, ()) if seen["seed"] not in out and seen["returns"]]
    friction = [seen for seen in evidence.get(FRICTION, ()) if seen["seed"] not in out and seen["returns"]]
    floats = [seen for seen in evidence.get(FLOATS, ()) if seen["seed"] not in out]
    drawn = [_returns(grid, friction)] if grid else []
    if grid:
        drawn += [_way_back(grid[0]), _predicted(grid)]
    return drawn + ([_float_error(floats)] if floats else [])


def _returns(grid: Sequence[Mapping[str, Any]], friction: Sequence[Mapping[str, Any]]) -> Picture:
    series = [_share_over_size(grid, turn, "random", turn, "evidence") for turn in grid[0]["turns"]]
    series += [
        _share_over_size(grid, turn, "gauge", f"{turn}, gauge direction", "control") for turn in grid[0]["turns"]
    ]
    if friction:
        name = max(friction[0]["returns"], key=lambda way: way["turn_step"])["turn"]
        series.append(_share_over_size(friction, name, "random", f"SGD with momentum, {name}", "control"))
    return Picture(
        title="What comes back",
        caption=(
            "Share of seeds whose function came back to the start's, over the size of a perturbation at the turn, by "
            "turn. If winding back worked in practice, all lines would be at 1 up to float32's rounding, and beyond."
        ),
        x="perturbation, relative to the parameters",
        y="share of returns",
        series=[s for s in series if s.x],
        log="x",
        marks={"all": THRESHOLDS["most"], "none": THRESHOLDS["few"]},
    )


def _share_over_size(several: Sequence[Mapping[str, Any]], turn: str, kind: str, name: str, role: Any) -> Series:
    ways = [(way, seen) for seen in several for way in seen["returns"] if way["turn"] == turn and way["kind"] == kind]
    sizes = sorted({way["size"] for way, _ in ways})
    shares = [
        share(returned(way, seen["start"]["test"], THRESHOLDS) for way, seen in ways if way["size"] == size)
        for size in sizes
    ]
    return Series(name, sizes, shares, role=role, mode="lines+markers")


def _way_back(seen: Mapping[str, Any]) -> Picture:
    """One seed, from its last turn."""
    last = max(seen["returns"], key=lambda way: way["turn_step"])["turn"]
    out, series = seen["out"], []
    series.append(Series("on the way out", out["step"], out["test"], role="theory"))
    for way in seen["returns"]:
        if way["turn"] == last and way["kind"] in ("none", "random", "momenta") and not way["draw"]:
            name = {"none": "back, unperturbed", "momenta": "back, random momenta"}.get(way["kind"])
            role = "control" if name else "evidence"
            series.append(
                Series(name or f"back, {way['size']:g}", way["curve"]["step"], way["curve"]["test"], role=role)
            )
    return Picture(
        title="The way back",
        caption=(
            f"Test accuracy of seed {seen['seed']} on its way back to step 0 (read from right to left). A way back "
            "that returns follows the way out down to chance and stays there; another leaves it and learns again."
        ),
        x="step",
        y="test accuracy",
        series=series,
        marks={"un-generalised": THRESHOLDS["un-generalised"]},
    )


def _predicted(grid: Sequence[Mapping[str, Any]]) -> Picture:
    level = THRESHOLDS["un-generalised"]
    points = [
        (predicted_distance(seen, way), way["onset_distance"], way["lowest_test"] <= level)
        for seen in grid
        for way in seen["returns"]
        if way["kind"] == "random"
    ]
    return distances(points, "How far off at the onset", THRESHOLDS["onset distance"])


def distances(points: Iterable[tuple[float | None, float | None, bool]], title: str, level: float) -> Picture:
    """Predicted against measured distance at the onset.

    Args:
        points: predicted, measured, whether it un-generalised; a way back each. None or 0: it is left out.
        title: of the picture.
        level: a distance below which a way back is predicted to un-generalise.
    """
    points = [(p, m, forgot) for p, m, forgot in points if p and m]
    series = []
    for name, which in (("un-generalised on its way", True), ("did not", False)):
        own = [(p, m) for p, m, forgot in points if forgot is which]
        series.append(Series(name, [p for p, _ in own], [m for _, m in own], mode="markers"))
    ends = [min((p for p, *_ in points), default=1e-6), 1.0]
    series.append(Series("as predicted", ends, ends, role="theory"))
    return Picture(
        title=title,
        caption=(
            "Distance from the way out at the step of the onset, a point for each way back: as forward tangent maps "
            "predict it, and as it was. On the line it grew as small perturbations do; far to the right it had grown "
            "as far as it can. Above the mark a way back is predicted not to un-generalise."
        ),
        x="predicted relative distance",
        y="measured relative distance",
        series=[s for s in series if s.x],
        log="xy",
        marks={"predicted to un-generalise below": level},
    )


def _float_error(floats: Sequence[Mapping[str, Any]]) -> Picture:
    series = []
    for dtype in ("float32", "float64"):
        for i, seen in enumerate(floats):
            way = max(seen[dtype], key=lambda way: way["turn_step"])
            back = [way["turn_step"] - step for step in way["curve"]["step"]]
            error = [d or None for d in way["curve"]["relative"]]
            series.append(
                Series(
                    dtype if not i else f"{dtype}, seed {seen['seed']}", back, error, role="seed" if i else "evidence"
                )
            )
    return Picture(
        title="The error of floats",
        caption=(
            "Relative distance of the parameters from the way out, in plain floats wound back by algebra from the last "
            "turn. A line that stays far below 1 is a return; straight lines upward are chaos, the slope its rate."
        ),
        x="steps undone",
        y="relative distance",
        series=series,
        log="y",
    )
