"""Units: their logarithms are whole numbers, so that a contraction is an addition, and its inverse a subtraction.

A lattice's value is n u. The unit u of a row of elements is 2**e of that row times 2**(log / ONE) of its tensor. `log`
is a whole number: multiplying by a factor c adds `log2_of(c)` to it, undoing that subtracts the same number, and -log /
ONE is at all times the bits that contractions have destroyed an element. A factor is met to 2**-60 in its logarithm.

Only the four operations and the square root are used, which IEEE 754 rounds alike on all machines.
"""

import functools
import math
from fractions import Fraction

PLACES = 60
ONE = 1 << PLACES
SMALLEST = 2.0**-30
"""A factor's smallest size."""

_WORK = 192  # bits of the arithmetic in `log2_of`
_STEP = 10  # binary places that one table serves


@functools.lru_cache(1 << 14)
def log2_of(factor: float) -> int:
    """log2 |factor|, in 2**-60; the same on every machine. `factor`: finite, not 0."""
    x = abs(Fraction(factor))
    whole = x.numerator.bit_length() - x.denominator.bit_length()
    if x < Fraction(2) ** whole:
        whole -= 1
    mantissa = int(x / Fraction(2) ** whole * (1 << _WORK))  # in [1, 2)
    log = whole
    for _ in range(PLACES + 2):  # two more, to round
        mantissa = mantissa * mantissa >> _WORK
        digit = mantissa >> (_WORK + 1)
        mantissa >>= digit
        log = 2 * log + digit
    return (log + 2) >> 2


@functools.lru_cache(1)
def _tables() -> list[list[float]]:
    """2**(k 2**-10), 2**(k 2**-20), ... for k below 2**10, as products of square roots of 2."""
    root, tables = 2.0, []
    for _ in range(PLACES // _STEP):
        table = [1.0]
        roots = []
        for _ in range(_STEP):
            root = math.sqrt(root)
            roots.append(root)
        for root_of_digit in reversed(roots):
            table += [x * root_of_digit for x in table]
        tables.append(table)
    return tables


@functools.lru_cache(1 << 14)
def split(log: int) -> tuple[float, int]:
    """scale in [1, 2) and shift with 2**(log / ONE) = scale 2**shift; the same on every machine."""
    shift, rest = log >> PLACES, log & (ONE - 1)
    if not rest:
        return 1.0, shift
    scale, below = 1.0, PLACES
    for table in _tables():
        below -= _STEP
        scale *= table[(rest >> below) & ((1 << _STEP) - 1)]
    return min(scale, 2.0 - 2.0**-52), shift
