"""Integer lattices: the state is integers, floats are a view of them.

Symbols: n integer state, u unit of a row of elements, value = n u.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..errors import InvalidSetting, LatticeOverflow, NonFinite
from .units import ONE, split

ROW = 1024
"""Elements of a row. Rows never cross a tensor: its last one is shorter."""
LIMIT = {torch.int64: 1 << 62, torch.int32: 1 << 30, torch.int16: 1 << 14}
"""Largest |n|: one bit of head room, so that a sum of two in-range numbers cannot wrap."""
RANGE = {torch.float32: (-100, 96), torch.float64: (-900, 900)}
"""Exponents that a unit may have, by the type of the arithmetic: its inverse and its multiples must be ordinary."""


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


class Rows:
    """How the tensors of a flat buffer are cut into rows.

    Args:
        sizes: elements of each tensor, in order.

    Attributes:
        tensors: element at which each tensor begins, int64, shape (tensors + 1,).
        first: row at which each tensor begins, int64, shape (tensors + 1,).
        starts: element at which each row begins, int64, shape (rows + 1,).
        owner: tensor of each row, int32, shape (rows,).
    """

    __slots__ = ("_lengths", "first", "owner", "starts", "tensors")

    def __init__(self, sizes: Sequence[int]):
        sizes = np.asarray(sizes, np.int64)
        counts = -(-sizes // ROW)
        self.tensors = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.owner = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        inside = np.arange(len(self.owner), dtype=np.int64) - self.first[self.owner]
        self.starts = np.append(self.tensors[self.owner] + ROW * inside, self.tensors[-1]).astype(np.int64)
        self._lengths: dict[tuple[int, int], np.ndarray] = {}

    @property
    def size(self) -> int:
        """Elements."""
        return int(self.tensors[-1])

    def __len__(self) -> int:
        """Rows."""
        return len(self.owner)

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Elements of rows [first, last)."""
        known = self._lengths.get((first, last))  # asked several times a step
        if known is None:
            self._lengths = {} if len(self._lengths) > 64 else self._lengths
            known = self._lengths[first, last] = np.diff(self.starts[first : last + 1])
        return known

    def spread(self, values: np.ndarray, first: int, last: int, device: torch.device) -> torch.Tensor:
        """A number for each element of rows [first, last), from one for each row."""
        lengths = torch.from_numpy(self.lengths(first, last))
        return torch.repeat_interleave(torch.from_numpy(np.ascontiguousarray(values)), lengths).to(device)


class Lattice:
    """A flat tensor of lattice points.

    Args:
        n: integers, shape (size,), dtype int64, int32 or int16. Changed in place, only by the ops.
        e: exponent of each row, int32, shape (rows,).
        rows: how n is cut.
        resolution: e at which a row is to be kept, where that is a setting; None: each row has its own.
        spare: bits of room that a row of zeros is given above its first update.

    Attributes:
        logs: whole numbers, one for each tensor; see `units`.
        bound: upper bound of |n| of each row, float64, shape (rows,): spares passes over memory. Not part of the
            state: decisions are always taken on the true maximum.
        pushed: bits that halvings have put on the tape, less what refinements have taken.
    """

    __slots__ = ("bound", "e", "logs", "n", "pushed", "resolution", "rows", "spare")

    def __init__(self, n: torch.Tensor, e: np.ndarray, rows: Rows, resolution: int | None = None, spare: int = 0):
        if n.dtype not in LIMIT:
            raise InvalidSetting(f"lattice={n.dtype} is not supported.", "use torch.int64, torch.int32 or torch.int16.")
        self.n, self.e, self.rows, self.resolution, self.spare = n, e, rows, resolution, spare
        self.logs = [0] * (len(rows.tensors) - 1)
        self.pushed = 0
        self.bound = np.empty(len(rows), np.float64)
        self.replaced()

    def replaced(self) -> None:
        """Other integers were written: forget what was known of them."""
        self.bound.fill(np.inf)

    @property
    def limit(self) -> int:
        """Largest |n| allowed."""
        return LIMIT[self.n.dtype]

    @property
    def bill(self) -> float:
        """Bits that contractions have destroyed, net of those that were given back."""
        sizes = np.diff(self.rows.tensors).tolist()
        return -sum(log * size for log, size in zip(self.logs, sizes, strict=True)) / ONE

    def exponents(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """floor(log2 u) of rows [first, last)."""
        shifts = np.array([split(log)[1] for log in self.logs], np.int64)
        return self.e[first:last] + shifts[self.rows.owner[first:last]]

    def units(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """u of rows [first, last), float64."""
        parts = [split(log) for log in self.logs]
        owner = self.rows.owner[first:last]
        scales, shifts = np.array([p[0] for p in parts]), np.array([p[1] for p in parts], np.int64)
        return np.ldexp(scales[owner], self.e[first:last] + shifts[owner]) if len(owner) else np.empty(0)

    def value(self, first: int = 0, last: int | None = None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The view of rows [first, last): n and u, each rounded to `dtype`, and multiplied there. A new tensor, flat."""
        last = len(self.rows) if last is None else last
        n = self.n[int(self.rows.starts[first]) : int(self.rows.starts[last])].to(dtype)
        u = self.rows.spread(self.units(first, last), first, last, self.n.device).to(dtype)
        return n.mul_(u)


def peak(n: torch.Tensor) -> int:
    """The largest |n|."""
    low, high = torch.aminmax(n) if n.numel() else (0, 0)
    return max(abs(int(low)), abs(int(high)))


def peaks(n: torch.Tensor, starts: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row of a flat tensor, float64; NaN where one is. `starts`: from 0, (rows + 1,)."""
    if not len(starts) - 1:
        return np.empty(0)
    x = n.abs().cpu().to(torch.float64).numpy()
    return np.maximum.reduceat(x, starts[:-1])


def largest(x: torch.Tensor) -> int:
    """Index of the element that is largest in magnitude, or not finite."""
    x = x.to(torch.float64)
    return int(torch.where(torch.isfinite(x), x.abs(), torch.inf).argmax())


def exponents_for(x: torch.Tensor, rows: int) -> np.ndarray:
    """Exponents with which the rows of one tensor hold these floats in 32 bits, with three bits to grow.

    2**-27 of the power of two above the largest magnitude, but at least 2**-40; 2**-30 for zeros.
    """
    if not rows:
        return np.empty(0, np.int32)
    starts = np.append(np.arange(rows) * ROW, x.numel())
    top = peaks(x.detach().reshape(-1), starts)
    exponents = np.clip(np.frexp(np.where(np.isfinite(top), top, 1.0))[1] - 27, -40, 60)
    return np.where(top == 0, -30, exponents).astype(np.int32)


def to_lattice(x: torch.Tensor, units: torch.Tensor | float, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Round floats of any shape to lattice integers (half to even), flat.

    Args:
        x: the floats.
        units: of all elements, or float64 of shape (x.numel(),).
        dtype: of the integers.
        name: for messages.

    Raises:
        NonFinite: if `x` holds NaN or infinity.
        LatticeOverflow: if a value does not fit `dtype` in these units.
    """
    scaled = x.detach().reshape(-1).to(torch.float64) / units
    if scaled.numel():
        peak = max(map(abs, map(float, torch.aminmax(scaled))))
        if not math.isfinite(peak):
            raise NonFinite(f"{name} holds NaN or infinity.", "initialise it with finite numbers.")
        if peak > LIMIT[dtype]:
            unit = float(units if isinstance(units, float) else units.max())
            raise LatticeOverflow(
                f"{name} holds {peak * unit:.3g}, but a {dtype} lattice of resolution {unit:.3g} "
                f"ends at {LIMIT[dtype] * unit:.3g}.",
                "pass a coarser resolution (a larger power of two), or lattice=torch.int64.",
            )
    return scaled.round_().to(dtype)
