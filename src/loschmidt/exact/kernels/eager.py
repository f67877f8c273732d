"""Traced instructions, run on tensors: the same bits as `rows.c`, on any device."""

import numpy as np
import torch

from ..lattice import peaks
from ..ops import Extra, TooLarge, no_extra, room, unroom
from ..rounding import by_rows, root
from ..tape import offsets, plane_bytes
from ..units import split
from ..world import Part
from .trace import Trace

_32 = 0xFFFFFFFF


class Failed(Exception):
    """A walk that may not be done; everything is as it was.

    Args:
        kind: "edited", "not finite", "too large" or "left the lattice".
        row: of the part.
        op: position of the op in the program; -1 before any.
    """

    def __init__(self, kind: str, row: int, op: int = -1):
        super().__init__(kind)
        self.kind, self.row, self.op = kind, row, op


class Result:
    """What a walk leaves.

    Attributes:
        counts: of each shear, int16, shape (rows,).
        planes: of each shear, on the way forward.
        quiet: of each shear, on the way forward: whether all its counts are 0.
        sums: of each sum instruction, float64, shape (rows,).
        checksum: of the gradient's words.
    """

    def __init__(self, counts: list[np.ndarray], planes: list[np.ndarray]):
        self.counts, self.planes, self.quiet, self.sums, self.checksum = counts, planes, [], [], 0


def units_of(trace: Trace, lattice: str, table: int) -> np.ndarray:
    """u of the part's rows, float64, with the logarithms of a table."""
    part = trace.part
    first, last = part.rows_at
    owner = part.block.rows.owner[first:last] - part.tensors_at[0]
    each = [split(log) for log in trace.tables[table]]
    scales, shifts = np.array([x[0] for x in each]), np.array([x[1] for x in each], np.int64)
    return np.ldexp(scales[owner], part.block.lattices[lattice].e[first:last] + shifts[owner])


def drawn(sizes: np.ndarray, salt: int, device: torch.device) -> torch.Tensor:
    """32 bits for each element of tensors of these sizes, from its place in its tensor and the salt: int32, flat.

    A Weyl sequence: equidistributed over elements, and over steps, as the salt is a hash of the step.
    """
    x = torch.cat([torch.arange(n, dtype=torch.int64, device=device) for n in sizes.tolist()])
    return ((x * 0x9E3779B9 + salt & _32) - ((x * 0x9E3779B9 + salt & 1 << 31) << 1)).to(torch.int32)


def extra_of(trace: Trace, name: str, salt: int) -> Extra:
    """What is added to a row before halving: to lattices of 16 bits, so that no bias adds up."""
    part = trace.part
    if part.block.lattices[name].n.dtype is not torch.int16:
        return no_extra
    starts = np.concatenate([[0], np.cumsum(part.lengths)])
    bits = (drawn(_sizes(part), salt, part.block.device) < 0).to(torch.int16)
    return lambda row: bits[int(starts[row]) : int(starts[row + 1])]


def _sizes(part: Part) -> np.ndarray:
    first, last = part.tensors_at
    return np.diff(part.block.rows.tensors[first : last + 1])


def run(trace: Trace, forward: bool, salt: int, counts: list[np.ndarray], planes: np.ndarray) -> Result:
    """All instructions, one after the other on all rows.

    Args:
        trace: of them.
        forward: whether room is made before a shear; else what was made is undone after it.
        salt: of the step.
        counts: on the way back, of each shear in the order of the instructions.
        planes: on the way back, those of all shears in the program's order, which is the reverse.

    Raises:
        Failed: everything is as it was.
    """
    part = trace.part
    block, rows, lengths, work = part.block, part.rows_at, part.lengths, part.block.work
    starts = np.concatenate([[0], np.cumsum(lengths)])
    registers: dict[str, torch.Tensor] = {}
    given = [np.asarray(c) for c in counts]
    at = offsets(given[::-1], lengths)[::-1] if given else None
    out = Result([], [])
    done: list[tuple] = []

    def operand(name: str) -> torch.Tensor | torch.Tensor:
        if name.startswith("%"):
            return registers[name]
        return torch.tensor(trace.parameters[int(name[1:])], dtype=torch.float64, device=block.device).to(work)

    try:
        for number, (op, *a) in enumerate(trace.instructions):
            to = f"%{number}"
            if op == "gradient":
                registers[to] = part.gradient
            elif op == "given":
                registers[to] = trace.given[a[0]].to(work)
            elif op == "value":
                u = block.rows.spread(units_of(trace, a[0], a[1]), *rows, block.device).to(work)
                registers[to] = (part.integers(a[0]) + a[2]).to(work).mul_(u)
            elif op in ("mul", "add", "sub", "div"):
                registers[to] = getattr(registers[a[0]], op)(operand(a[1]))
            elif op == "sqrt":
                registers[to] = root(registers[a[0]])
            elif op == "max0":
                x = registers[a[0]]
                registers[to] = torch.where(x < 0, torch.zeros_like(x), x)
            elif op == "sum":
                out.sums.append(by_rows(registers[a[0]], lengths).cpu().numpy())
            else:
                k = len(done)
                _shear(trace, a, registers[a[2]], starts, forward, salt, out, k, given, at, planes)
                done.append((a, registers[a[2]]))
    except Failed as failed:
        failed.op = trace.shears[len(done)]
        for k in reversed(range(len(done))):
            a, x = done[k]
            _take_back(trace, a, x, forward, salt, out, k, given, at, planes)
        raise
    return out


def _kick(trace: Trace, a: list, x: torch.Tensor, salt: int, sign: int) -> None:
    name, table, _, own, dithered = a
    part = trace.part
    block, work = part.block, part.block.work
    inverse = block.rows.spread(1.0 / units_of(trace, name, table), *part.rows_at, block.device).to(work)
    k = x * inverse
    if dithered:
        k = k.add_(drawn(_sizes(part), salt, block.device).to(work) * 2.0**-32)
    k = k.round_()
    n = part.integers(name)
    n.add_(k.to(n.dtype)) if own * sign > 0 else n.sub_(k.to(n.dtype))


def _shear(trace, a, x, starts, forward, salt, out, k, given, at, planes) -> None:
    name, table, *_ = a
    part = trace.part
    rows, work = part.rows_at, part.block.work
    most = peaks(x, starts)
    if not np.isfinite(most).all():
        raise Failed("not finite", int(np.flatnonzero(~np.isfinite(most))[0]))
    lattice, (t0, t1) = part.block.lattices[name], part.tensors_at
    before = list(lattice.logs[t0:t1])
    try:
        lattice.logs[t0:t1] = trace.tables[table]
        if forward:
            try:
                counts, made = room(lattice, rows, most, work, extra_of(trace, name, salt))
            except TooLarge as error:
                raise Failed("too large", error.row) from None
            out.counts.append(counts)
            out.planes.append(made)
            out.quiet.append(not counts.any())
        else:
            kick = most / lattice.units(*rows) + 2.0
            bound = peaks(part.integers(name), starts)
            if (bound + kick > 2.0 * lattice.limit - 2.0).any():
                raise Failed("left the lattice", int((bound + kick).argmax()))
        _kick(trace, a, x, salt, 1)
        if not forward:
            lattice.bound[rows[0] : rows[1]] += kick
            unroom(
                lattice, rows, given[k], _by_rows(given[k], part.lengths, at[k], planes), extra_of(trace, name, salt)
            )
            out.counts.append(given[k])
    finally:
        lattice.logs[t0:t1] = before


def _take_back(trace, a, x, forward, salt, out, k, given, at, planes) -> None:
    name, table, *_ = a
    part = trace.part
    lattice, (t0, t1) = part.block.lattices[name], part.tensors_at
    before = list(lattice.logs[t0:t1])
    lattice.logs[t0:t1] = trace.tables[table]
    starts = np.concatenate([[0], np.cumsum(part.lengths)])
    if forward:
        _kick(trace, a, x, salt, -1)
        own = offsets([out.counts[k]], part.lengths)[0]
        each = _by_rows(out.counts[k], part.lengths, own, out.planes[k])
        unroom(lattice, part.rows_at, out.counts[k], each, extra_of(trace, name, salt))
    else:
        room(lattice, part.rows_at, peaks(x, starts), part.block.work, extra_of(trace, name, salt))
        _kick(trace, a, x, salt, -1)
    lattice.logs[t0:t1] = before


def _by_rows(counts: np.ndarray, lengths: np.ndarray, at: np.ndarray, planes: np.ndarray) -> list[np.ndarray]:
    sizes = [plane_bytes(counts[i : i + 1], lengths[i : i + 1]) for i in range(len(counts))]
    return [planes[int(at[i]) : int(at[i]) + sizes[i]] for i in range(len(counts))]
