"""Whether a run is stationary, and its temperature if it is.

In a stationary state no average changes. Of q.p the change over a step is push + pull, p'.(q' - q) + q.(p' - p), so the
two must cancel: a virial theorem that holds exactly for any step size, momentum and noise. For SGD this is one of the
fluctuation-dissipation relations of Yaida (arXiv 1810.00004), which says the same of q . grad F and |p|^2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidSetting

_FEWEST = 32  # lines
_HALVES = 8  # stretches in each half
_ERRORS = 4.0


@dataclass(frozen=True)
class Stationarity:
    """A verdict.

    Attributes:
        holds: whether nothing speaks against it.
        reason: what does, or how much was looked at.
        virial_gap: |mean of push + pull| over the larger of their means.
        drifts: of each quantity, second half's mean minus the first's, in standard errors.
    """

    holds: bool
    reason: str
    virial_gap: float
    drifts: dict[str, float]


@dataclass(frozen=True)
class Temperature:
    """A kinetic temperature, or why there is none.

    Attributes:
        value: energy a degree of freedom, in `unit`; None where the state is not stationary.
        unit: nats, or loss.
        reason: of the verdict.
    """

    value: float | None
    unit: str
    reason: str


def stationarity(
    lines: Sequence[dict[str, Any]], *, view: str = "batch", tolerance: float = 0.02, virial_tolerance: float = 0.1
) -> Stationarity:
    """Whether a stretch of a ledger looks stationary: window means agree, and the virial relation holds.

    Means of potential, kinetic energy and |q|^2 over the two halves must agree within 4 standard errors (from 8
    stretches a half), or within `tolerance` of their size; then push and pull must cancel to `virial_tolerance` of the
    larger, or to 4 standard errors, if these are no larger than half of it. It can't be proven, only not refuted: a
    slower drift than the stretch is long goes unseen.

    Args:
        lines: of an `EnergyMonitor`, in order, of the stretch in question.
        view: whose potential is looked at.
        tolerance: relative difference of means that is let pass.
        virial_tolerance: relative size of push + pull that is let pass.

    Raises:
        InvalidSetting: lines without that view.
    """
    if len(lines) < _FEWEST:
        return Stationarity(False, f"{len(lines)} lines are fewer than {_FEWEST}", math.nan, {})
    known = [name for name in ("batch", "full", "mean") if all(name in line for line in lines)]
    if view not in known:
        raise InvalidSetting(f"view={view!r} is not on all lines.", f"use one of {', '.join(known)}.")
    series = {
        "potential": [line[view]["potential"] for line in lines],
        "kinetic": [line[view]["kinetic"] for line in lines],
        "norm2": [line["norm2"] for line in lines],
    }
    drifts, moved = {}, []
    for name, values in series.items():
        x = np.array(values, dtype=np.float64)
        if not np.isfinite(x).all():
            return Stationarity(False, f"{name} is not known on all lines", math.nan, drifts)
        means = np.array([part.mean() for part in np.array_split(x, 2 * _HALVES)])
        first, second = means[:_HALVES], means[_HALVES:]
        difference = float(second.mean() - first.mean())
        error = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / _HALVES)
        drifts[name] = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
        if abs(difference) > max(_ERRORS * error, tolerance * abs(float(means.mean()))):
            moved.append(f"{name} moved by {difference:.3g} ({drifts[name]:+.1f} standard errors)")
    push, pull = (np.array([line[name] for line in lines], dtype=np.float64) for name in ("push", "pull"))
    scale = max(abs(push.mean()), abs(pull.mean()))
    gap = abs(float((push + pull).mean())) / scale if scale else 0.0
    blocks = np.array([part.mean() for part in np.array_split(push + pull, 2 * _HALVES)])
    error = float(blocks.std(ddof=1)) / math.sqrt(len(blocks)) / scale if scale else 0.0
    if gap > virial_tolerance and (gap > _ERRORS * error or error > 0.5):
        moved.append(f"push and pull do not cancel (to {gap:.0%} of the larger, error {error:.0%})")
    return Stationarity(not moved, "; ".join(moved) or f"nothing moved over {len(lines)} lines", gap, drifts)


def kinetic_temperature(lines: Sequence[dict[str, Any]], **checks: Any) -> Temperature:
    """Mean of p . dH/dp over parameters, if the stretch is stationary; else None, and why.

    For SGD lr |p|^2/n, in units of the loss; for ECD 2 |p|^2/((s + |p|^2) n), in nats, which stays below 2/n whatever
    the state. It is the temperature of a distribution exp(-H/T) only where there is one: the noise of mini-batches is
    neither isotropic nor of the same size everywhere.

    Args:
        lines: of an `EnergyMonitor`, in order.
        **checks: for `stationarity`.
    """
    verdict = stationarity(lines, **checks)
    unit = lines[0]["unit"] if lines else ""
    if not verdict.holds:
        return Temperature(None, unit, verdict.reason)
    value = float(np.mean([line["virial"] / line["parameters"] for line in lines]))
    return Temperature(value, unit, verdict.reason)
