"""What is read off the curves of claim 3: falls, breaths, their phase, when a run froze. Pure functions of lists.

A curve is the "curve" of a run of `breathing_runs.sweep`: lists with an entry for each look. Times are steps times lr.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Curve = Mapping[str, Sequence[float]]


def largest_fall(values: Sequence[float]) -> tuple[int, int] | None:
    """Where values fell most below an earlier one: (from, to); None if they never fell."""
    best, found, top = 0.0, None, 0
    for i, value in enumerate(values):
        if value > values[top]:
            top = i
        if values[top] - value > best:
            best, found = values[top] - value, (top, i)
    return found


def depth(values: Sequence[float]) -> float:
    """The largest fall, 0 if there is none."""
    fall = largest_fall(values)
    return 0.0 if fall is None else values[fall[0]] - values[fall[1]]


def first(values: Sequence[float], level: float) -> int | None:
    """The first look at which a value reaches a level."""
    return next((i for i, value in enumerate(values) if value >= level), None)


def late(curve: Curve, name: str) -> Sequence[float]:
    """The second half of the looks."""
    return curve[name][len(curve[name]) // 2 :]


def turning_points(values: Sequence[float], swing: float) -> list[tuple[int, int]]:
    """Peaks and troughs, in turn: (look, +1 or -1). One counts when values have moved away from it by `swing`."""
    found: list[tuple[int, int]] = []
    high = low = 0
    for i, value in enumerate(values):
        high = i if value > values[high] else high
        low = i if value < values[low] else low
        last = found[-1][1] if found else 0
        if last <= 0 and values[high] - value >= swing:
            found.append((high, 1))
            low = i
        elif last >= 0 and value - values[low] >= swing:
            found.append((low, -1))
            high = i
    return found


def period(curve: Curve, onset: int, swing: float, lr: float) -> float | None:
    """Mean time between neighbouring peaks, and troughs, of test accuracy; None with fewer than two of either."""
    points = turning_points(curve["test"][onset:], swing)
    steps, gaps = curve["step"][onset:], []
    for kind in (1, -1):
        at = [steps[i] for i, which in points if which == kind]
        gaps += [b - a for a, b in pairwise(at)]
    return lr * sum(gaps) / len(gaps) if gaps else None


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's; None where one of them stands still, or of fewer than three."""
    n = len(a)
    if n < 3:
        return None
    middle_a, middle_b = math.fsum(a) / n, math.fsum(b) / n
    x, y = [v - middle_a for v in a], [v - middle_b for v in b]
    size = math.sqrt(math.fsum(v * v for v in x) * math.fsum(v * v for v in y))
    return math.fsum(u * v for u, v in zip(x, y, strict=True)) / size if size > 0 else None


def lag(curve: Curve, onset: int, longest: int) -> tuple[float, int] | None:
    """How test accuracy and the norm go together: the shift at which they are most opposed.

    Args:
        curve: of a run.
        onset: look to begin at.
        longest: shift to try, in looks, either way.

    Returns:
        The lowest correlation, and the shift in looks: above 0 accuracy follows the norm. None if one stands still.
    """
    test, norm = curve["test"][onset:], curve["norm"][onset:]
    found = []
    for shift in range(-longest, longest + 1):
        a, b = (test[shift:], norm[: len(norm) - shift]) if shift >= 0 else (test[:shift], norm[-shift:])
        r = correlation(a, b)
        if r is not None and len(a) >= len(test) / 2:
            found.append((r, abs(shift), shift))
    if not found:
        return None
    r, _, shift = min(found)
    return r, shift


def frozen_at(curve: Curve, band: float) -> int | None:
    """The first look from which on test accuracy stays within a band; None if that is in the last quarter."""
    test = curve["test"]
    high = low = test[-1]
    since = len(test) - 1
    for i in range(len(test) - 1, -1, -1):
        high, low = max(high, test[i]), min(low, test[i])
        if high - low > band:
            break
        since = i
    return since if since <= 0.75 * len(test) else None


def lock_in(frictions: Sequence[float], still: Sequence[bool]) -> tuple[float | None, float | None]:
    """The bracket of the friction (1 - momentum) from which on runs stay: (largest that breathes, least that is still).

    Args:
        frictions: ascending; the first may be 0.
        still: whether the run with it stayed.

    Returns:
        Of the last change from breathing to still. (None, least) if the weakest is still already; (largest, None) if
        none is.
    """
    moving = [f for f, s in zip(frictions, still, strict=True) if not s]
    above = [f for f, s in zip(frictions, still, strict=True) if s and (not moving or f > moving[-1])]
    return (moving[-1] if moving else None), (above[0] if above else None)


def melting_energy(kicks: Sequence[Mapping[str, Any]], level: float, fall: float) -> tuple[float | None, float | None]:
    """The bracket of the energy that melts, in nats: (largest kick that does not, least that does).

    Args:
        kicks: as `breathing_parts.melting` gives them.
        level: test accuracy before.
        fall: test accuracy that must be lost at some look after it.
    """
    ordered = sorted(kicks, key=lambda kick: kick["energy"])
    return lock_in([k["energy"] for k in ordered], [level - k["test"] >= fall for k in ordered])
