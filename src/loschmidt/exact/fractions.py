"""Coefficients as products of small fractions n/d, which is what `Contract` can multiply by.

A head of the tape holds about 2**32 to 2**52, and an op pops a digit base n and pushes one base d,
so n and d stay at or below 2**23; a coefficient that one such fraction misses takes two.
"""

import math
from fractions import Fraction
from functools import lru_cache

from ..errors import InvalidSetting

LARGEST = 1 << 23
"""Largest numerator or denominator."""
_STEP = 8  # one fraction changes a head by at most this factor, so that one 16-bit word makes room for it

Factors = tuple[tuple[int, int], ...]


@lru_cache(maxsize=4096)
def factors(c: float, tolerance: float = 0.0) -> Factors:
    """Fractions (n, d) whose product is `c`.

    Args:
        c: a positive finite coefficient.
        tolerance: relative error below which a single fraction will do. Default: 1e-7 of |1 - c|,
            so that 1 - lr * weight_decay keeps its decay, and 0.9 is 9/10.

    Returns:
        () for c == 1, else one or more pairs with |log2(n/d)| <= 3. The product is within `tolerance`,
        or within 2**-44 relative, whichever is looser; by default it also meets |1 - c| to 3e-7 of itself. Only what
        is below about 2**-46 (a decay of 1e-14 a step) is left out.

    Raises:
        InvalidSetting: if `c` is not positive and finite.
    """
    if not (c > 0 and math.isfinite(c)):
        raise InvalidSetting(f"a contraction by {c!r} has no inverse.", "use a coefficient above 0.")
    exact, out = Fraction(c), []
    while exact > _STEP:
        out.append((_STEP, 1))
        exact /= _STEP
    while exact < Fraction(1, _STEP):
        out.append((1, _STEP))
        exact *= _STEP
    if exact != 1:
        out += _single(exact, tolerance) or _pair(exact)
    return tuple(out)


def product(pairs: Factors) -> Fraction:
    """The exact rational number that the pairs multiply by."""
    total = Fraction(1)
    for n, d in pairs:
        total *= Fraction(n, d)
    return total


def bits(pairs: Factors) -> float:
    """Bits per element that the contraction costs: -log2 of the product."""
    return -sum(math.log2(n / d) for n, d in pairs)


def _single(c: Fraction, tolerance: float) -> list[tuple[int, int]] | None:
    largest = LARGEST if c <= 1 else max(1, int(LARGEST / c))
    for limit in (1 << 10, 1 << 16, largest):  # the smallest fraction that is good enough
        best = c.limit_denominator(min(limit, largest))
        if best > 0 and abs(best - c) <= (Fraction(tolerance) * c if tolerance else abs(1 - c) / 10**7):
            return [(best.numerator, best.denominator)] if best != 1 else []
    return None


def _pair(c: Fraction) -> list[tuple[int, int]]:
    """c = a/b * (K+1)/K with K near 2**23: neighbours of (K+1)/K are 2**-46 apart, so c is met to 2**-45."""
    if abs(1 - c) < Fraction(1, LARGEST):
        return _near_one(c)
    low, high = c * (1 - Fraction(2, LARGEST)), c * (1 - Fraction(1, LARGEST))
    first = _simplest(low, high)
    k = round(1 / (c / first - 1))
    return [(first.numerator, first.denominator), (k + 1, k)]


def _near_one(c: Fraction) -> list[tuple[int, int]]:
    """1 - x = (K-1)/K * L/(L-1) with L = K + j, x = j/(K (L-1)): x is met to 2e-7 of itself. And its inverse."""
    if c > 1:
        return [(d, n) for n, d in _near_one(1 / c)]
    x = 1 - c
    j = math.floor(x * LARGEST * (LARGEST - 1) / (1 + x * (LARGEST - 1)))  # as large as L allows
    if j == 0:  # x < 2**-46
        return []
    k = min(round((math.sqrt((j - 1) ** 2 + 4 * j / x) + 1 - j) / 2), LARGEST - j)
    return [(k - 1, k), (k + j, k + j - 1)]


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest denominator in [low, high] (continued fractions)."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = math.floor(low)
    return floor + 1 / _simplest(1 / (high - floor), 1 / (low - floor))
