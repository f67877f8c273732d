"""Numbers with intervals: each function gives (value, (low, high), n), as `Measure` takes them.

Intervals are 95 % unless `level` says otherwise; None where there is none, as for a single seed. A missing value (None,
NaN) is refused: a run that missed its precondition is listed in `Finding.left_out`, and left out by the judge.
Needs the extra `lab`.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidSetting

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of one seed."""


class Estimate(NamedTuple):
    """A value, its interval (None: it has none), and how many seeds or points it rests on."""

    value: float
    interval: tuple[float, float] | None
    n: int


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean, with Student's t interval: right for means of independent, roughly normal values."""
    x = _numbers(values)
    n, middle = len(x), math.fsum(x) / len(x)
    if n < 2:
        return Estimate(middle, None, n)
    deviation = math.sqrt(math.fsum((v - middle) ** 2 for v in x) / (n - 1))
    half = float(_lab("scipy.stats").t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(middle, (middle - half, middle + half), n)


def bootstrap(
    values: Sequence[float],
    statistic: Callable[..., Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 9_999,
) -> Estimate:
    """A statistic with its bias-corrected and accelerated bootstrap interval; the same numbers at every call.

    Args:
        values: independent ones.
        statistic: of an array along `axis`, as numpy's; the median by default.
        level: of the interval.
        seed: of the resampling.
        resamples: how many.
    """
    import numpy as np

    x = np.array(_numbers(values))
    statistic = statistic or np.median
    value = float(statistic(x, axis=-1))
    if len(x) < 2:
        return Estimate(value, None, len(x))
    if (x == x[0]).all():
        return Estimate(value, (value, value), len(x))
    draws = np.random.default_rng(seed)
    stats = _lab("scipy.stats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of degenerate data, which is looked for below
        found = stats.bootstrap((x,), statistic, confidence_level=level, n_resamples=resamples, rng=draws, method="BCa")
    low, high = map(float, found.confidence_interval)
    if not math.isfinite(low + high):  # a statistic that leaving one out does not change has no acceleration
        draws = np.random.default_rng(seed)
        found = stats.bootstrap(
            (x,), statistic, confidence_level=level, n_resamples=resamples, rng=draws, method="percentile"
        )
        low, high = map(float, found.confidence_interval)
    return Estimate(value, (low, high), len(x))


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """So many of so many, with Wilson's interval, which holds at 0 of n and n of n, too."""
    if not 0 <= successes <= n or n < 1:
        raise InvalidSetting(f"{successes} of {n} is no proportion.", "give successes between 0 and n, and n > 0.")
    found = _lab("scipy.stats").binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, (float(found.low), float(found.high)), n)


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of a - b, of pairs (of one seed each), with its t interval."""
    return mean([x - y for x, y in zip(*_pairs(a, b), strict=True)], level)


def ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Estimate:
    """The geometric mean of a / b, of pairs of positive numbers, with the t interval of their logarithms."""
    a, b = _pairs(a, b)
    middle, interval, n = mean([x - y for x, y in zip(_logs(a), _logs(b), strict=True)], level)
    return Estimate(math.exp(middle), interval and (math.exp(interval[0]), math.exp(interval[1])), n)


def exponent(curves: Sequence[Curve], level: float = 0.95) -> Estimate:
    """k in y = c x^k: a least-squares line through each seed's logarithms, then the mean of the slopes over seeds."""
    return mean([_slope(_logs(x), _logs(y)) for x, y in curves], level)


def pooled_exponent(curves: Sequence[Curve], level: float = 0.95) -> Estimate:
    """k in y = c x^k, one line through the logarithms of all points (ordinary least squares); n counts points.

    It takes points of one seed for independent ones. Where they are not, its interval is too narrow: see `exponent`.
    """
    x = [v for xs, _ in curves for v in _logs(xs)]
    y = [v for _, ys in curves for v in _logs(ys)]
    _slope(x, y)  # refuses what has no slope
    api = _lab("statsmodels.api")
    fit = api.OLS(y, api.add_constant(x)).fit()
    low, high = map(float, fit.conf_int(1 - level)[1])
    return Estimate(float(fit.params[1]), (low, high) if len(x) > 2 else None, len(x))


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) != len(y) or len(set(x)) < 2:
        raise InvalidSetting(
            f"{len(x)} x and {len(y)} y have no slope.", "give at least two different x, a y for each."
        )
    middle_x, middle_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    over = math.fsum((u - middle_x) * (v - middle_y) for u, v in zip(x, y, strict=True))
    return over / math.fsum((u - middle_x) ** 2 for u in x)


def _numbers(values: Sequence[float]) -> list[float]:
    x = [math.nan if v is None else float(v) for v in values]
    if not x or not all(map(math.isfinite, x)):
        missing = sum(not math.isfinite(v) for v in x)
        seen = f"{missing} of {len(x)} values are missing or not finite." if x else "there are no values."
        raise InvalidSetting(seen, "leave out what was not measured, and say so in `left_out`.")
    return x


def _pairs(a: Sequence[float], b: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(a) != len(b):
        raise InvalidSetting(f"{len(a)} and {len(b)} values are no pairs.", "give one of each for every seed.")
    return _numbers(a), _numbers(b)


def _logs(values: Sequence[float]) -> list[float]:
    x = _numbers(values)
    if min(x) <= 0:
        raise InvalidSetting(f"{min(x):g} has no logarithm.", "give positive numbers.")
    return [math.log(v) for v in x]


def require() -> None:
    """Raise InvalidSetting if the extra `lab` is missing: before a run, not after it."""
    for module in ("scipy.stats", "statsmodels.api"):
        _lab(module)


def _lab(module: str) -> Any:
    """A module of the extra `lab`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidSetting(
            f"statistics of claims need {module.split('.')[0]}, which cannot be imported: {error}.",
            "pip install 'loschmidt[lab]'",
        ) from error
