"""Section `growth`: seconds of an optimizer's step from 1e5 to 1e8 parameters, and the exponent they grow with."""

from collections.abc import Callable
from typing import Any

from . import machine
from .plan import BYTES_PER_PARAMETER, BenchPlan
from .steps import WARM, Ours
from .subjects import give, gradients, named, parameters
from .timing import interleaved, ratio, slope, summary, timed

Found = dict[str, Any]
Tick = Callable[[int, int], None]

NAMES = ("SGD int64", "AdamW")
_ELEMENTS = 1_000_000  # steps of small optimizers are timed in groups of about so many elements
_MOST = 20


def growth(plan: BenchPlan, found: Found, tick: Tick) -> None:
    """Fill `found` with curves, points as they are finished, and skipped sizes."""
    found["target"], found["skipped"], found["curves"] = {"slope": 1.0, "within": 0.05}, [], []
    done, total = 0, len(NAMES) * len(plan.growth_sizes) * plan.repeats

    def one_more() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    for name in NAMES:
        curve: Found = {"optimizer": name, "points": []}
        found["curves"].append(curve)
        for size in plan.growth_sizes:
            machine.empty(plan.device)
            free = machine.free_memory(plan.device)
            if free is not None and BYTES_PER_PARAMETER * size > free:
                found["skipped"].append({"optimizer": name, "parameters": size, "free_bytes": free})
                for _ in range(plan.repeats):
                    one_more()
                continue
            curve["points"].append(_point(plan, name, size, one_more))
            _fit(curve)


def _fit(curve: Found) -> None:
    points = curve["points"]
    if len(points) > 1:
        sizes = [p["parameters"] for p in points]
        curve["ours"] = slope(sizes, [p["seconds"]["step"]["median"] for p in points])
        curve["fused"] = slope(sizes, [p["seconds"]["fused"]["median"] for p in points])


def _point(plan: BenchPlan, name: str, size: int, one_more: Callable[[], None]) -> Found:
    subject, device = named(name), plan.device
    given = gradients(size, plan.seed, device)
    ours = Ours(subject, size, plan.seed, device, given)
    mine = parameters(size, plan.seed, device)
    give(mine, given)
    twin = subject.make_twin(mine, "fused")
    for _ in range(WARM):
        twin.step()
    count = max(1, min(_MOST, _ELEMENTS // size))
    contestants = {
        "ours": lambda: {"step": timed(ours.step, device, count)},
        "fused": lambda: {"fused": timed(twin.step, device, count)},
    }
    seconds = interleaved(contestants, plan.repeats, one_more)
    return {
        "parameters": size,
        "seconds": {key: summary(values) for key, values in seconds.items()},
        "step_over_fused": ratio(seconds["step"], seconds["fused"]),
    }
