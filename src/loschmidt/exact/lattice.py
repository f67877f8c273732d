"""Integer lattices: the state is integers, floats are a view of them.

Symbols: n integer state, e exponent, value = n * 2**-e (2**-e is the resolution).
"""

import math

import torch

from ..errors import InvalidSetting, LatticeOverflow, NonFinite

_BITS = {torch.int64: 62, torch.int32: 30}  # one bit of head room: a sum of two in-range numbers cannot wrap


def exponent_of(resolution: float) -> int:
    """The e with resolution = 2**-e.

    Raises:
        InvalidSetting: if `resolution` is not a power of two in [2**-62, 1].
    """
    mantissa, exponent = math.frexp(resolution) if isinstance(resolution, (int, float)) else (0.0, 0)
    if mantissa != 0.5 or not 0 <= 1 - exponent <= 62:
        raise InvalidSetting(
            f"resolution={resolution!r} is not a power of two between 2**-62 and 1; "
            "only then is every lattice point an exact float.",
            "pass for example resolution=2**-40.",
        )
    return 1 - exponent


class Lattice:
    """A flat tensor of lattice points.

    Attributes:
        n: integers, shape (size,), dtype int64 or int32. Changed in place, only by the ops.
        exponent: e of the resolution 2**-e. Grows coarser (smaller) when the lattice is coarsened.
        bound: upper bound of |n|, kept on the host so that range checks need no pass over memory.
            Not part of the state: decisions are always taken on the true maximum.
        square: the sum of squares of the values, if it is known (deep blocks only).
        asked: whether it was ever asked for: then passes find it on their way.
    """

    __slots__ = ("asked", "bound", "exponent", "n", "square")

    def __init__(self, n: torch.Tensor, exponent: int):
        if n.dtype not in _BITS:
            raise InvalidSetting(f"lattice={n.dtype} is not supported.", "use torch.int64 or torch.int32.")
        self.n, self.exponent, self.asked = n, exponent, False
        self.replaced()

    def replaced(self) -> None:
        """Other integers were written: forget what was known of them."""
        self.bound: float = math.inf
        self.square: torch.Tensor | None = None

    @property
    def limit(self) -> int:
        """Largest |n| allowed."""
        return 1 << _BITS[self.n.dtype]

    def value(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Float64 view of n[start:stop]: n rounded to 53 bits, times 2**-e. A new tensor."""
        return self.n[start:stop].to(torch.float64).mul_(2.0**-self.exponent)

    def has_room(self, extra: float, growth: float = 1.0) -> bool:
        """Whether |n| * growth + extra stays within the limit, for every element; may refresh `bound`."""
        if self.bound * growth + extra > self.limit:
            self.bound = peak(self.n)
        return self.bound * growth + extra <= self.limit


def peak(n: torch.Tensor) -> int:
    """The largest |n|."""
    low, high = torch.aminmax(n) if n.numel() else (0, 0)
    return max(abs(int(low)), abs(int(high)))


def largest(x: torch.Tensor) -> int:
    """Index of the element that is largest in magnitude, or not finite."""
    x = x.to(torch.float64)
    return int(torch.where(torch.isfinite(x), x.abs(), torch.inf).argmax())


def to_lattice(x: torch.Tensor, exponent: int, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Round floats of any shape to lattice integers (half to even).

    Raises:
        NonFinite: if `x` holds NaN or infinity.
        LatticeOverflow: if a value does not fit `dtype` at this resolution.
    """
    scaled = x.detach().to(torch.float64) * 2.0**exponent
    if scaled.numel():
        peak = max(map(abs, map(float, torch.aminmax(scaled))))
        if not math.isfinite(peak):
            raise NonFinite(f"{name} holds NaN or infinity.", "initialise it with finite numbers.")
        if peak > 1 << _BITS[dtype]:
            raise LatticeOverflow(
                f"{name} holds {peak * 2.0**-exponent:.3g}, but a {dtype} lattice of resolution 2**-{exponent} "
                f"ends at {2.0 ** (_BITS[dtype] - exponent):.3g}.",
                "pass a coarser resolution (a larger power of two), or lattice=torch.int64.",
            )
    return scaled.round_().to(dtype)


def rounded(increment: torch.Tensor, exponent: int) -> tuple[torch.Tensor, float]:
    """An increment in real units as whole lattice units (float64), and its largest magnitude (NaN if any is)."""
    units = (increment * 2.0**exponent).round_()
    if not units.numel():
        return units, 0.0
    low, high = torch.aminmax(units)  # both are NaN if any element is
    return units, max(abs(float(low)), abs(float(high))) if low == low else math.nan
