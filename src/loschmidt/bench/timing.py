"""Clocks, and what is made of their readings: medians, paired ratios, slopes."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees


def timed(work: Callable[[], Any], device: str = "cpu", count: int = 1) -> float:
    """Seconds of one call of `work`, the mean of `count` calls in a row; a GPU is waited for."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


@contextmanager
def undisturbed() -> Iterator[None]:
    """Python's garbage collector stands still, so that it runs in nobody's time."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleaved(
    contestants: Mapping[str, Callable[[], Mapping[str, float]]],
    repeats: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Each contestant once in every repeat, beginning with another one each time.

    Args:
        contestants: a contestant measures itself and gives seconds by name.
        repeats: how often.
        tick: called after each repeat.

    Returns:
        The seconds of each name, by repeat: those of one repeat belong together.
    """
    names, seconds = list(contestants), {}
    with undisturbed():
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                for key, value in contestants[name]().items():
                    seconds.setdefault(key, []).append(value)
            tick()
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios of pairs."""
    return summary([a / b for a, b in zip(over, under, strict=True)])


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The exponent of a power law, from a straight line through the logarithms.

    Returns:
        `slope`, `interval` (95 %, Student's t, or None for fewer than three points), `points`.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    freedom = len(x) - 2
    if freedom < 0:
        return {"slope": None, "interval": None, "points": len(x)}
    centred = x - x.mean()
    spread = float(centred @ centred)
    b = float(centred @ y) / spread
    if freedom < 1:
        return {"slope": b, "interval": None, "points": len(x)}
    rest = y - y.mean() - b * centred
    error = math.sqrt(float(rest @ rest) / freedom / spread)
    half = error * (_T975[freedom - 1] if freedom <= len(_T975) else 2.2)
    return {"slope": b, "interval": [b - half, b + half], "points": len(x)}
