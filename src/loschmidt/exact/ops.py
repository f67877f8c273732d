"""What is done to the integers of rows, each with its inverse beside it; the eager twins of `kernels/row_ops.h`.

    shear    n += k                                        inverse: n -= k
    halve    n -> n >> 1, u -> 2 u, the low bit to a plane     inverse: n -> 2 n + bit, u -> u / 2
    jump     a row of zeros: u -> 2**k u                   inverse: u -> u / 2**k
    rotate   three rounded shears (Paeth 1986)             inverse: the same shears subtracted, last first

Each is a bijection of integer tuples, so a program made of them is one too.
"""

from collections.abc import Callable

import numpy as np
import torch

from ..errors import LatticeOverflow
from .lattice import RANGE, Lattice, peaks
from .tape import JUMP, Stack, plane_bytes

SLACK = 1.0 + 2.0**-20
"""An update in units, found in float64, times this and plus 2, bounds what is added: it is rounded in float32, too."""
_FLOOR = 32  # how far above its floor the unit of a row of zeros is raised


Extra = Callable[[int], torch.Tensor | None]
"""Row of a part -> bits that are added before halving, or None."""


def no_extra(row: int) -> None:
    """Nothing is added."""


class TooLarge(LatticeOverflow):
    """A row would need a unit that arithmetic cannot use. Nothing was changed.

    Args:
        row: which, of the part.
    """

    def __init__(self, row: int):
        super().__init__("a value is beyond any unit.", "lower lr, or clip the gradient.")
        self.row = row


def halve(n: torch.Tensor, extra: torch.Tensor | None = None) -> np.ndarray:
    """n >> 1 in place; the low bits, packed into bytes, the first lowest.

    Args:
        n: a row.
        extra: bits that are added before, so that the mean is kept; in the type of n.
    """
    if extra is not None:
        n.add_(extra)
    plane = np.packbits((n & 1).to(torch.uint8).cpu().numpy(), bitorder="little")
    n.bitwise_right_shift_(1)
    return plane


def redouble(n: torch.Tensor, plane: np.ndarray, extra: torch.Tensor | None = None) -> None:
    """2 n + bit in place: the inverse of `halve` with the same `extra`."""
    bits = torch.from_numpy(np.unpackbits(plane, count=n.numel(), bitorder="little")).to(n.device, n.dtype)
    n.mul_(2).add_(bits)
    if extra is not None:
        n.sub_(extra)


def room(
    lattice: Lattice, rows: tuple[int, int], most: np.ndarray, work: torch.dtype, extra: Extra = no_extra
) -> tuple[np.ndarray, np.ndarray]:
    """Halve rows until an update fits: the unit is never too fine for it, nor for the arithmetic.

    A row of zeros has nothing to remember: its unit is chosen without bits, and leaves `spare` bits of room above the
    update. Decisions depend on the integers, the units and the update alone.

    Args:
        lattice: of which.
        rows: [first, last).
        most: the largest magnitude of each row's update, in real units.
        work: the type of the arithmetic.
        extra: of each row, see `halve`.

    Returns:
        Counts (see `tape`), int16, shape (rows,); and the planes of all rows, one after the other.

    Raises:
        TooLarge: nothing was changed.
    """
    (first, last), (low, high) = rows, RANGE[work]
    starts, limit, spare = lattice.rows.starts, float(lattice.limit), 2.0**lattice.spare
    counts, planes = np.zeros(last - first, np.int16), [[] for _ in range(last - first)]
    n = [lattice.n[starts[r] : starts[r + 1]] for r in range(first, last)]
    waiting = np.arange(last - first)
    known: set[int] = set()
    while len(waiting):
        units = lattice.units(first, last)
        exponents = lattice.exponents(first, last)
        left = []
        for i in waiting.tolist():
            with np.errstate(over="ignore"):
                k = most[i] / units[i] * SLACK + 2.0
            bound, by = lattice.bound[first + i], 0
            if bound + k * spare <= limit and exponents[i] >= low:
                continue
            if i not in known:
                bound = lattice.bound[first + i] = float(peaks(n[i], np.array([0, n[i].numel()]))[0])
                known.add(i)
            zero = bound == 0.0 and not 0 < counts[i] < JUMP  # not one that halving has made zero
            if not k < 1e300:
                by = 1 << 20
            elif zero and most[i] > 0.0 and k * spare > limit:
                by = int(np.frexp(k * spare / limit)[1])
            elif bound + k > limit:
                by = int(np.frexp((bound + k) / limit)[1])
            if exponents[i] + by < low:
                by = int((low + _FLOOR if zero else low) - exponents[i])
            whole, by = by, by if zero else min(by, 64)
            if exponents[i] + whole > high or (not zero and counts[i] + by >= JUMP):
                unroom(lattice, rows, counts, [b"".join(p) for p in planes], extra)
                raise TooLarge(i)
            if not by:
                continue
            if zero:
                counts[i] = max(counts[i], JUMP) + by
            else:
                planes[i] += [halve(n[i], extra(i)).tobytes() for _ in range(by)]
                counts[i] += by
                lattice.bound[first + i] = float(peaks(n[i], np.array([0, n[i].numel()]))[0])
            lattice.e[first + i] += by
            left.append(i)
        waiting = np.array(left, np.int64)
    lattice.bound[first:last] += np.where(most < np.inf, most, 0.0) / lattice.units(first, last) * SLACK + 2.0
    return counts, np.frombuffer(b"".join(b for p in planes for b in p), np.uint8)


def unroom(
    lattice: Lattice,
    rows: tuple[int, int],
    counts: np.ndarray,
    planes: list[bytes | np.ndarray],
    extra: Extra = no_extra,
) -> None:
    """Undo `room`, given what it returned, planes row by row.

    A row that is not on the recorded path may not fit any more. It stays coarse: its value is the same, and its low
    bits, which were another row's, are dropped.
    """
    first = rows[0]
    for i in np.flatnonzero(counts).tolist():
        r, count = first + i, int(counts[i])
        n = lattice.n[lattice.rows.starts[r] : lattice.rows.starts[r + 1]]
        most = float(peaks(n, np.array([0, n.numel()]))[0])
        if count >= JUMP:
            lattice.e[r] -= (count - JUMP) if most == 0.0 else 0
            continue
        size = -(-n.numel() // 8)
        each = np.frombuffer(planes[i], np.uint8) if isinstance(planes[i], bytes) else planes[i]
        for j in reversed(range(count)):
            if 2 * most > lattice.limit:
                for _ in range(count - 1 - j):
                    halve(n, extra(i))
                break
            redouble(n, each[j * size : (j + 1) * size], extra(i))
            most = float(peaks(n, np.array([0, n.numel()]))[0])
        else:
            lattice.e[r] -= count
            lattice.bound[r] = np.inf


def refine(lattice: Lattice, rows: tuple[int, int], stack: Stack) -> np.ndarray:
    """After units have grown: n -> 2 n + bit where that fits, until rows are as fine as they are to be.

    The bits are the tape's last ones, whoever wrote them; zeros, if it holds fewer than are wanted. Lattices with a
    resolution go back to it; others keep the head room that a first update leaves.

    Returns:
        Counts (see `tape`), int16, shape (rows,): negative; below -JUMP where the bits were zeros.
    """
    (first, last), starts = rows, lattice.rows.starts
    n = lattice.n[starts[first] : starts[last]]
    top = peaks(n, starts[first : last + 1] - starts[first])
    fits = np.maximum(np.frexp(lattice.limit / (top + 1.0))[1] - 1, 0)
    if lattice.resolution is None:
        by = np.where(top > 0, np.maximum(fits - 3 - lattice.spare, 0), 0)
    else:
        by = np.clip(lattice.exponents(first, last) + lattice.resolution, 0, fits)
    lengths = lattice.rows.lengths(first, last)
    size = plane_bytes(by.astype(np.int16), lengths // 8 * 8)
    enough = size <= len(stack.planes) - stack.planes.forgotten
    bits = stack.take(size) if enough else np.zeros(size, np.uint8)
    at = 0
    for i in np.flatnonzero(by).tolist():
        row, whole = lattice.n[starts[first + i] : starts[first + i + 1]], int(lengths[i]) // 8
        for _ in range(int(by[i])):
            redouble(row, np.append(bits[at : at + whole], np.uint8(0))[: -(-int(lengths[i]) // 8)])
            at += whole
        lattice.e[first + i] -= by[i]
        lattice.bound[first + i] = np.inf
    return -np.where(by > 0, by + (0 if enough else JUMP), 0).astype(np.int16)


def coarsen(lattice: Lattice, rows: tuple[int, int], counts: np.ndarray, stack: Stack) -> None:
    """Undo `refine`, given what it returned."""
    first, starts, planes = rows[0], lattice.rows.starts, []
    for i in np.flatnonzero(counts).tolist():
        by, taken = -int(counts[i]), counts[i] > -JUMP
        by -= 0 if taken else JUMP
        row = lattice.n[starts[first + i] : starts[first + i + 1]]
        made = [halve(row)[: row.numel() // 8] for _ in range(by)][::-1]
        planes += made if taken else []
        lattice.e[first + i] += by
        lattice.bound[first + i] = np.inf
    stack.planes.push(np.concatenate(planes) if planes else np.empty(0, np.uint8))


def rotate_(x: torch.Tensor, y: torch.Tensor, ratio: torch.Tensor, angle: torch.Tensor, sign: int = 1) -> None:
    """Rotate the pairs (x, y) by `angle`, in place, as three rounded shears; sign=-1 is the exact inverse.

    Args:
        x: integers, shape (pairs,).
        y: integers, shape (pairs,), another tensor than x.
        ratio: units of y over those of x, float64, powers of two times ratios near 1.
        angle: float64 radians, at most pi/2 in magnitude (the shears grow large beyond).
    """
    slope, rise = -torch.tan(angle / 2), torch.sin(angle)
    shears = ((x, y, slope * ratio), (y, x, rise / ratio), (x, y, slope * ratio))
    for target, source, factor in shears if sign > 0 else shears[::-1]:
        k = (factor * source.to(torch.float64)).round_().to(target.dtype)
        target.add_(k) if sign > 0 else target.sub_(k)
