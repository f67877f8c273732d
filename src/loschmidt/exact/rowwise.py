"""Passes on tensors, a row of lanes at a time: the twin of `native`, with the same bits.

Used where there is no C compiler, on other devices, under `torch.compile` where that is asked for, and by tests.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .tape import idles
from .trace import Instruction

_ARITHMETIC = {"mul": torch.mul, "add": torch.add, "sub": torch.sub, "div": torch.div}


def evaluate(
    instructions: Sequence[Instruction],
    lattices: dict[str, torch.Tensor],
    gradient: torch.Tensor | None,
    weights: torch.Tensor | None,
    heads: dict[str, torch.Tensor],
    P: torch.Tensor,
    at: dict,
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Do a pass on one row, in place.

    Args:
        instructions: see `trace`.
        lattices: integers by name, shape (m,).
        gradient: shape (m,), in its own dtype.
        weights: shape (m,): the float view of "q", compared first and written last; None where it is not shown.
        heads: float64, shape (m,), by lattice.
        P: parameters, float64.
        at: index in P of what exchanges and lattices need; see `csource.places`.

    Returns:
        Peaks (0-dimensional), and which weights were edited (those stay as they are), where they are shown.
    """
    v: dict[str, torch.Tensor] = {}
    peaks: list[torch.Tensor] = []
    edited = None
    if weights is not None:
        edited = bits(shown(lattices["q"], P[at["scale", "q"]], weights.dtype)) != bits(weights)

    def of(operand: str) -> torch.Tensor:
        return P[int(operand[1:])] if operand.startswith("P") else v[operand]

    for number, (op, *a) in enumerate(instructions):
        if op == "gradient":
            out = gradient.to(torch.float64)
        elif op == "value":
            out = lattices[a[0]].to(torch.float64)
        elif op in _ARITHMETIC:
            out = _ARITHMETIC[op](of(a[0]), of(a[1]))
        elif op == "sqrt":
            out = of(a[0]).sqrt()
        elif op == "max0":
            out = of(a[0]).clamp_min(0.0)
        elif op == "peak":
            peaks.append(of(a[0]).abs().amax())
            continue
        elif op == "exchange":
            exchange_(lattices[a[0]], heads[a[0]], P[at["exchange", number, "n"]], P[at["exchange", number, "d"]])
            continue
        else:
            end = P[at["end", a[0]]]
            units = of(a[1]).round()
            peaks.append(units.abs().amax())
            # exact: what is beyond the range, or not a number, is left out, as in the compiled pass
            units = torch.where(units.abs() < end, units, 0.0).to(lattices[a[0]].dtype)
            lattices[a[0]].add_(units, alpha=a[2])
            continue
        v[f"%{number}"] = out
    if weights is not None:
        weights.copy_(torch.where(edited, weights, shown(lattices["q"], P[at["scale", "q"]], weights.dtype)))
    return peaks, edited


@functools.cache
def compiled() -> Callable[..., Any]:
    """`evaluate` under `torch.compile`: one kernel a row."""
    return torch.compile(evaluate, dynamic=True)


def exchange_(x: torch.Tensor, heads: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> None:
    """As `ops._exchange_`, with n and d as 0-dimensional tensors, so that no schedule compiles anything anew."""
    above = (heads / n).floor()
    u = heads - above * n
    h = (x.to(torch.float64) / d).to(torch.int64)
    whole = d.to(torch.int64)
    t = u + (x - h * whole).to(torch.float64) * n
    k = (t / d).floor()
    x.copy_(k.to(torch.int64) + h * n.to(torch.int64))
    heads.copy_(above * d + (t - k * d))


def shown(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The float view."""
    return (q.to(torch.float64) * scale).to(dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Of floats, as integers."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def idle_(
    instructions: Sequence[Instruction], idle: dict[str, torch.Tensor], P: torch.Tensor, at: dict, forward: bool
) -> None:
    """What exchanges do to lanes that the last row does not reach: x = 0, so u comes back as the remainder."""
    for number, (op, *a) in enumerate(instructions):
        if op == "exchange" and idle[a[0]].numel() and idles(*(a[1:] if forward else a[:0:-1])):
            n, d = P[at["exchange", number, "n"]], P[at["exchange", number, "d"]]
            heads = idle[a[0]]
            above = (heads / n).floor()
            heads.copy_(above * d + (heads - above * n))
