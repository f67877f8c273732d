"""The four arithmetic kernels on lattice integers, each with its inverse beside it.

    shear     x += k                                    inverse: x -= k
    exchange  z = x n + u, x = z // d, r = z mod d      inverse: the same with n and d swapped
    rotate    three rounded shears (Paeth 1986)         inverse: the same shears subtracted, last first

Each is a bijection of integer tuples, so a program made of them is one too.
"""

import math

import torch

from .tape import Lanes, idles


def shear_(x: torch.Tensor, units: torch.Tensor, sign: int = 1) -> None:
    """x += sign * units, in place. `units`: whole numbers in float64; inverse: the other sign. Free of bits."""
    whole = units.to(x.dtype)
    x.add_(whole) if sign > 0 else x.sub_(whole)


def _exchange_(x: torch.Tensor, heads: torch.Tensor, n: int, d: int, short: bool = False) -> None:
    """Multiply x by n/d; pop the digit u (base n) that fills the gap, push the remainder r (base d).

    Multiplying first keeps the rounding below one unit; dividing first would add n units of noise.
    """
    above = (heads / n).floor_()
    w = torch.sub(heads, above, alpha=n)
    if short:  # exact: x n + u = x d + (x (n - d) + u), and the second term is whole and below 2**51
        k = (w.add_(x, alpha=n - d) / d).floor_()
        x.add_(k.to(x.dtype))
    else:
        # exact: x = h d + v for *any* integer h, so h may come from an inexact float product; then
        # x n + u = (h n) d + (v n + u), where |v n + u| < 2**47 is whole and exact in float64.
        h = x.to(torch.float64).mul_(1 / d).to(torch.int64)
        w.add_(torch.sub(x, h, alpha=d).to(torch.float64), alpha=n)
        k = (w / d).floor_()
        x.copy_(k.to(torch.int64).add_(h, alpha=n))
    torch.add(w.sub_(k, alpha=d), above, alpha=d, out=heads)


def near(bound: float, n: int, d: int) -> bool:
    """Whether an exchange of integers up to this bound may take the short way."""
    return bound * abs(n - d) < 2.0**50


def contract_(x: torch.Tensor, start: int, lanes: Lanes, n: int, d: int, bound: float = math.inf) -> None:
    """x = floor-free x n/d in place, remainders to the tape: log2(d/n) bits an element, given back when n > d.

    Args:
        x: integers, shape (size,), elements [start, start + size) of the buffer that `lanes` belongs to.
        start: first element.
        lanes: the tape.
        n: numerator, at most 2**23.
        d: denominator, at most 2**23.
        bound: upper bound of |x|, if one is known.
    """
    for first, last, lane in lanes.rows(start, start + x.numel()):
        whole = lanes.is_whole(first, last, n, d)
        lanes.prepare(((n, d),), whole)
        _exchange_row_(
            x[first - start : last - start], lanes.heads, lane, n, d, whole and idles(n, d), near(bound, n, d)
        )


def uncontract_(x: torch.Tensor, start: int, lanes: Lanes, n: int, d: int, bound: float = math.inf) -> None:
    """Inverse of `contract_` with the same arguments: rows last first, n and d swapped."""
    for first, last, lane in reversed(lanes.rows(start, start + x.numel())):
        whole = lanes.is_whole(first, last, n, d)
        _exchange_row_(
            x[first - start : last - start], lanes.heads, lane, d, n, whole and idles(n, d), near(bound, n, d)
        )
        lanes.unprepare(((n, d),), whole)


def _exchange_row_(x: torch.Tensor, heads: torch.Tensor, lane: int, n: int, d: int, idle: bool, short: bool) -> None:
    end = lane + x.numel()
    _exchange_(x, heads[lane:end], n, d, short)
    if idle and end < heads.numel():  # the last row's other lanes, as if a zero stood there
        _exchange_(torch.zeros_like(heads[end:], dtype=torch.int64), heads[end:], n, d)


def rotate_(x: torch.Tensor, y: torch.Tensor, angle: torch.Tensor, sign: int = 1) -> None:
    """Rotate the pairs (x, y) by `angle`, in place, as three rounded shears; sign=-1 is the exact inverse.

    Args:
        x: integers, shape (pairs,).
        y: integers, shape (pairs,), another tensor than x.
        angle: float64 radians, at most pi/2 in magnitude (the shears grow large beyond).
    """
    slope, rise = -torch.tan(angle / 2), torch.sin(angle)
    shears = ((x, y, slope), (y, x, rise), (x, y, slope))
    for target, source, factor in shears if sign > 0 else shears[::-1]:
        shear_(target, (factor * source.to(torch.float64)).round_(), sign)
