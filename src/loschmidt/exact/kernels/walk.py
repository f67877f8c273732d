"""A walk: traced instructions, done to all rows of a part, in C or on tensors; all or nothing."""

import ctypes
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..tape import offsets
from ..units import split
from ..world import Block, Part
from . import eager, native
from .eager import Failed, Result
from .trace import Instruction, Trace

_OPS = (
    *("gradient", "value", "mul", "add", "sub", "div", "mulP", "addP", "subP", "divP", "sqrt", "max0", "shear", "sum"),
    *("step", "moments", "follow"),
)
_READS = {"gradient": "", "value": ""} | dict.fromkeys(("mul", "add", "sub", "div"), "ab")
"""Fields of a code that name registers it reads, where that is not "a" alone."""
_NUMBER = {name: i for i, name in enumerate(_OPS)}
_WRONG = ("", "edited", "not finite", "too large", "left the lattice", "no memory")
MOST, REGISTERS, HALVINGS, CODES = 8, 12, 16, 250
_SMALL = 1 << 15  # elements from which on a second thread is worth its start


class _Args(ctypes.Structure):
    _numbers = ("rows", "threads", "forward", "codes", "halvings", "lattices", "narrow", "view", "q", "shows", "looks")
    _fields_ = (
        [(k, ctypes.c_int64) for k in (*_numbers, "steps")]
        + [(k, ctypes.c_void_p) for k in ("starts", "owner", "inside", "only", "gradients", "weights")]
        + [(k, ctypes.c_void_p * MOST) for k in ("n", "e", "bound")]
        + [(k, ctypes.c_int64 * MOST) for k in ("width", "spare")]
        + [(k, ctypes.c_void_p) for k in ("code", "P", "scales", "shifts", "unit_stride", "unit_at")]
        + [("q_before", ctypes.c_int64), ("q_after", ctypes.c_int64), ("salt", ctypes.c_uint64)]
        + [(k, ctypes.c_void_p) for k in ("counts", "planes_in", "offsets", "done", "moved", "sums", "failed")]
        + [("checksum", ctypes.c_uint64), ("planes_bytes", ctypes.c_int64 * HALVINGS), ("made", ctypes.c_void_p)]
    )


def _address(x: np.ndarray | None) -> int | None:
    return None if x is None else x.__array_interface__["data"][0]


class _Frame:
    """What `rows.c` is told of some tensors of a block, where it is the same at each step: kept by the block.

    Args:
        block: of which.
        first: the first tensor.
        last: the one behind the last.
    """

    def __init__(self, block: Block, first: int, last: int):
        rows = block.rows
        r0, r1 = int(rows.first[first]), int(rows.first[last])
        self.lengths = rows.lengths(r0, r1)
        self.starts = np.ascontiguousarray(rows.starts[r0 : r1 + 1])
        self.owner = np.ascontiguousarray(rows.owner[r0:r1] - np.int32(first))
        self.inside = np.ascontiguousarray(self.starts[:-1] - rows.tensors[rows.owner[r0:r1]])
        self.names = tuple(block.lattices)
        self.held = self._holds(block)
        self.gradients, self.weights = np.zeros(last - first, np.int64), np.zeros(last - first, np.int64)
        self.parameters = np.zeros(CODES)
        self.done, self.moved, self.failed = (
            np.zeros(r1 - r0, np.uint8),
            np.zeros(CODES, np.uint8),
            np.zeros(3, np.int64),
        )
        self.unit_at, self.stride = np.zeros(CODES, np.int64), np.zeros(CODES, np.int64)
        self.args = a = _Args()
        a.rows, a.lattices, a.view = r1 - r0, len(self.names), block.dtype.itemsize
        a.narrow, a.q = block.work is torch.float32, self.names.index("q") if "q" in self.names else 0
        for i, x in enumerate(block.lattices.values()):
            a.n[i], a.width[i], a.spare[i] = x.n.data_ptr(), x.n.element_size(), x.spare
            a.e[i], a.bound[i] = _address(x.e) + 4 * r0, _address(x.bound) + 8 * r0
        for name in ("starts", "owner", "inside", "gradients", "weights", "done", "moved", "failed", "unit_at"):
            setattr(a, name, _address(getattr(self, name)))
        a.P, a.unit_stride = _address(self.parameters), _address(self.stride)
        self.at = ctypes.byref(a)

    def _holds(self, block: Block) -> list[Any]:
        return [x for lattice in block.lattices.values() for x in (lattice.n, lattice.e, lattice.bound)]

    def fits(self, block: Block) -> bool:
        """Whether nothing was replaced since."""
        return all(a is b for a, b in zip(self.held, self._holds(block), strict=True))


def frame_of(part: Part) -> _Frame:
    """The part's, made anew if it must be."""
    frames, at = part.block.frames, part.tensors_at
    frame = frames.get(at)
    if frame is None or not frame.fits(part.block):
        if len(frames) > 64:
            frames.clear()
        frame = frames[at] = _Frame(part.block, *at)
    return frame


class Walk:
    """Instructions ready to be done.

    Args:
        trace: what is done.
        forward: which way.
        shows: whether weights are compared with the view of "q" before, and written after.
        looks: whether the gradient's words are summed up.
    """

    def __init__(self, trace: Trace, forward: bool, shows: bool = False, looks: bool = False):
        self.trace, self.part, self.forward = trace, trace.part, forward
        self.shows, self.looks = shows, looks
        block = self.part.block
        self.q_before = self.q_after = 0
        if shows:
            first, last = self.part.tensors_at
            self.q_before = self._table(tuple(block.lattices["q"].logs[first:last]))
            self.q_after = self._table(trace.logs.get("q", trace.tables[self.q_before]))

    def _table(self, logs: tuple[int, ...]) -> int:
        if logs not in self.trace.tables:
            self.trace.tables.append(logs)
        return self.trace.tables.index(logs)

    @property
    def salt(self) -> int:
        """A hash of step and seed, 32 bits: where the step's dither begins."""
        world = self.part.world
        x = (world.step * 2246822519 + world.seed * 3266489917) & 0xFFFFFFFF
        for factor in (0x9E3779B1, 0x85EBCA6B):
            x = (x ^ x >> 16) * factor & 0xFFFFFFFF
        return x ^ x >> 13

    def run(self, counts: Sequence[np.ndarray] = (), planes: np.ndarray | None = None) -> Result:
        """Do it. Logarithms are the caller's to take over.

        Args:
            counts: on the way back, of each shear in the order of the instructions.
            planes: on the way back, of all shears in the program's order, which is the reverse.

        Raises:
            Failed: everything is as it was.
        """
        planes = np.empty(0, np.uint8) if planes is None else planes
        if self.trace.given or native.mode(self.part.block.device) == "eager":
            return self._eager(list(counts), planes)
        return self._native(list(counts), planes)

    # -- on tensors ----------------------------------------------------------------------------------

    def _eager(self, counts: list[np.ndarray], planes: np.ndarray) -> Result:
        from ..digest import words_sum

        part = self.part
        block, checksum = part.block, 0
        first, last = part.tensors_at
        if self.looks:
            for i in range(first, last):
                g = block.gradients[i].reshape(-1)
                finite = torch.isfinite(g)
                if not bool(finite.all()):
                    row = int((~finite).nonzero()[0]) // 1024 + int(block.rows.first[i] - block.rows.first[first])
                    raise Failed("not finite", row)
                checksum += int(words_sum(g, int(block.rows.tensors[i])))
        if self.shows:
            shown = self._view(self.q_before)
            for i in range(first, last):
                at = int(block.rows.tensors[i] - block.rows.tensors[first])
                w = block.weights[i].detach().reshape(-1)
                other = _bits(w) != _bits(shown[at : at + w.numel()])
                if bool(other.any()):
                    row = int(other.nonzero()[0]) // 1024 + int(block.rows.first[i] - block.rows.first[first])
                    raise Failed("edited", row)
        result = eager.run(self.trace, self.forward, self.salt, counts, planes)
        if self.shows:
            shown = self._view(self.q_after)
            for i in range(first, last):
                at, w = int(block.rows.tensors[i] - block.rows.tensors[first]), block.weights[i].detach()
                w.copy_(shown[at : at + w.numel()].view(w.shape))
        result.checksum = checksum & (2**64 - 1)
        return result

    def _view(self, table: int) -> torch.Tensor:
        part, work = self.part, self.part.block.work
        u = part.block.rows.spread(eager.units_of(self.trace, "q", table), *part.rows_at, part.block.device).to(work)
        return part.integers("q").to(work).mul_(u).to(part.block.dtype)

    @property
    def _alike(self) -> bool:
        """Whether the integers of all lattices but the parameters' have one width, as fused instructions need it."""
        return len({x.n.dtype for k, x in self.part.block.lattices.items() if k != "q"}) <= 1

    # -- in C ----------------------------------------------------------------------------------------

    def _native(self, counts: list[np.ndarray], planes: np.ndarray) -> Result:
        trace, frame = self.trace, frame_of(self.part)
        code = coded(tuple(trace.instructions), frame.names, self._alike)
        k, rows = code.shears, len(frame.lengths)
        given = np.zeros((max(1, k), rows), np.int16)
        for i, c in enumerate(counts):
            given[i] = c
        back = k and not self.forward
        at = np.ascontiguousarray(offsets(list(given[:k])[::-1], frame.lengths)[::-1]) if back else None
        planes = np.ascontiguousarray(planes)
        result, kind, row, done = self._call(frame, code, given, at, planes, self.forward, None)
        if kind:
            done = done.copy()
            self._take_back(frame, k, given, at, planes, result, done)
            raise Failed(_WRONG[kind], row, trace.shears[int(done[row]) - 2] if done[row] > 1 else -1)
        return result

    def _take_back(self, frame, k, given, at, planes, result, done) -> None:
        """Undo the rows that were done, and of those done in part the shears that were."""
        code = coded(tuple(self.trace.instructions), frame.names, False).table
        shears = np.flatnonzero(code["op"] == _NUMBER["shear"])
        made = np.concatenate(result.planes) if self.forward and result.planes else planes
        where = offsets(list(given[:k]), frame.lengths) if self.forward and k else at
        if where is not None:
            where = np.ascontiguousarray(where)
        for whole, only in ((True, done == 1), *((False, np.arange(len(done)) == r) for r in np.flatnonzero(done > 1))):
            if only.any():
                mine = self._inverse(code if whole else code[: ([0, *(shears + 1)])[int(done[only][0]) - 2]])
                self._call(frame, Code(mine, k), given.copy(), where, made, not self.forward, only.astype(np.uint8))

    def _inverse(self, code: np.ndarray) -> np.ndarray:
        """Each shear's own inverse, last first, right after the instructions that its update is made of.

        An update never reads its own target, and so is the same before and after it; what it does read is made anew, in
        the state that it was made in.
        """
        out, shears = [], [i for i, c in enumerate(code) if c["op"] == _NUMBER["shear"]]
        for i in reversed(shears):
            needed, want = [], {int(code[i]["a"])}
            for j in reversed(range(i)):
                c = code[j]
                if c["op"] != _NUMBER["shear"] and int(c["to"]) in want:
                    needed.append(j)
                    want.discard(int(c["to"]))
                    op = _OPS[int(c["op"])]
                    want |= {int(c[field]) for field in _READS.get(op, "a")}
            out += [code[j].copy() for j in reversed(needed)]
            back = code[i].copy()
            back["b"] = -back["b"]
            out.append(back)
        return np.array(out, code.dtype) if out else code[:0]

    def _call(self, frame, code, counts, at, planes, forward, only) -> tuple[Result, int, int, np.ndarray]:
        trace, block, (t0, t1), a = self.trace, self.part.block, self.part.tensors_at, frame.args
        sums = np.empty((code.sums, a.rows))
        units = _put_units(frame, trace.tables)
        frame.parameters[: len(trace.parameters)] = trace.parameters
        frame.done.fill(0)
        frame.moved.fill(0)
        frame.failed.fill(0)
        whole = only is None
        if block.gradients:
            frame.gradients[:] = [block.gradients[i].data_ptr() if i in block.gradients else 0 for i in range(t0, t1)]
        if block.weights:
            frame.weights[:] = [block.weights[i].data_ptr() if i in block.weights else 0 for i in range(t0, t1)]
        threads = torch.get_num_threads() if self.part.size >= _SMALL else 1
        a.threads, a.forward, a.codes, a.halvings = min(threads, a.rows), forward, len(code.table), code.shears
        a.shows, a.looks, a.only = self.shows * (1 if whole else 2), self.looks and whole, _address(only)
        a.code, a.salt, a.q_before = code.at, self.salt, self.q_before
        a.q_after = self.q_after if whole else self.q_before
        a.scales, a.shifts = _address(units[0]), _address(units[1])
        a.counts, a.planes_in, a.offsets, a.sums = _address(counts), _address(planes), _address(at), _address(sums)
        library = native.library()
        library.run(frame.at)
        if frame.failed[0] == _WRONG.index("no memory") and not a.made:
            raise MemoryError("no memory for the planes of a step.")
        sizes, first, made = a.planes_bytes[: code.shears], 0, []
        out = np.empty(sum(sizes), np.uint8)
        library.collect(frame.at, ctypes.c_void_p(_address(out)) if forward else None)
        for size in sizes if forward else ():
            made.append(out[first : first + size])
            first += size
        result = Result(list(counts[: code.shears]), made)
        result.quiet = [not x for x in frame.moved[: code.shears].tolist()]
        result.sums, result.checksum = list(sums), int(a.checksum)
        return result, int(frame.failed[0]), int(frame.failed[1]), frame.done


def _put_units(frame: _Frame, tables: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts of the tables' logarithms; where each begins, and whether it has one for each tensor."""
    scales, shifts = [1.0], [0]
    for i, table in enumerate(tables):
        alike = table.count(table[0]) == len(table)
        frame.unit_at[i], frame.stride[i] = len(scales), not alike
        for log in table[:1] if alike else table:
            scale, shift = split(log)
            scales.append(scale)
            shifts.append(shift)
    return np.array(scales), np.array(shifts, np.int64)


def _fused(instructions: Sequence[Instruction]) -> dict[int, Instruction]:
    """Instructions by their number, some that follow each other as one, so that rows are gone through less often.

    ("shear", ..., dithered, P | "", squared)   of a register, or its square, times P
    ("step", m, its unit, plus, v, its unit, plus, P, Q)     m / (sqrt(max(v, 0) P) + Q)
    ("follow", lattice, its unit, other, its unit, sign, P)   a shear of a lattice by another one's value times P
    ("moments", m, its unit, v, its unit, %a, sign, P, Q, whether m is first)   shears of m by %a P, of v by %a^2 Q
    """
    uses = Counter(x for i in instructions for x in i if isinstance(x, str) and x.startswith("%"))
    out = dict(enumerate(instructions))

    def once(name: Any, *kinds: str) -> Instruction | None:
        """The instruction of a register that nothing else reads, if it is of this kind: operands after its name."""
        found = out.get(int(name[1:])) if isinstance(name, str) and name.startswith("%") else None
        return found if found and uses[name] == 1 and found[0] in kinds else None

    def number(i: Instruction | None) -> bool:
        return i is not None and i[2].startswith("P")

    for k, i in list(out.items()):
        if i[0] == "div" and i[2].startswith("%") and (value := once(i[1], "value")):
            chain = [once(i[2], "add")]
            for kind in ("sqrt", "mul", "max0", "value"):
                chain.append(chain[-1] and once(chain[-1][1], kind))
            if chain[-1] and number(chain[0]) and number(chain[2]):
                for name in (i[1], i[2], *(x[1] for x in chain[:4])):
                    del out[int(name[1:])]
                out[k] = ("step", *value[1:], *chain[-1][1:], chain[2][2], chain[0][2])
        elif i[0] == "shear":
            register, factor, squared = i[3], "", False
            if number(one := once(register, "mul")):
                del out[int(register[1:])]
                register, factor = one[1], one[2]
                two = once(register, "mul")
                if two and two[1] == two[2]:
                    del out[int(register[1:])]
                    register, squared = two[1], True
            out[k] = (*i[:3], register, *i[4:], factor, squared)
            value = once(register, "value")
            if value and factor and not squared and not i[5] and not value[3]:
                del out[int(register[1:])]
                out[k] = ("follow", i[1], i[2], *value[1:3], i[4], factor)
    return _paired(out)


def _paired(out: dict[int, Instruction]) -> dict[int, Instruction]:
    """Neighbouring shears by one register and by its square, as one."""
    before: int | None = None
    for k in list(out):
        if before is not None and out[k][0] == out[before][0] == "shear" and out[k][3] == out[before][3]:
            first = not out[before][7]
            m, v = (out[before], out[k]) if first else (out[k], out[before])
            plain, squares = m[5:] == (False, m[6], False) and m[6], v[5] and v[6] and v[7]
            if plain and squares and m[1] != v[1] and m[4] == v[4]:
                out[k] = ("moments", m[1], m[2], v[1], v[2], m[3], m[4], m[6], v[6], first)
                del out[before]
                before = None
                continue
        before = k
    return out


_FIELDS = ("op", "to", "a", "b", "lattice", "unit", "halving", "flag", "factor", "squared")
_SECOND = ("lattice2", "unit2", "halving2", "flag2", "factor2")


class Code:
    """Instructions as `rows.c` reads them.

    Attributes:
        table: of them, a record each.
        shears: how many there are.
        sums: how many, at least 1.
        at: the table's address.
    """

    def __init__(self, table: np.ndarray, shears: int):
        self.table, self.shears = np.ascontiguousarray(table), shears
        self.sums = max(1, int((table["op"] == _NUMBER["sum"]).sum()))
        self.at = self.table.ctypes.data


@functools.lru_cache(256)
def coded(instructions: tuple[Instruction, ...], names: tuple[str, ...], fused: bool = True) -> Code:
    """Instructions as `rows.c` reads them, with registers.

    Args:
        instructions: see `trace`.
        names: of the lattices, in the order of `Args.n`.
        fused: whether several may be one.
    """
    listed = _fused(instructions) if fused else dict(enumerate(instructions))
    registers: dict[str, int] = {}
    last = {x: k for k, i in listed.items() for x in i if isinstance(x, str) and x.startswith("%")}
    free, out, shears, sums = list(range(REGISTERS))[::-1], [], 0, 0
    for k, (op, *a) in listed.items():
        c = dict.fromkeys((*_FIELDS, *_SECOND), 0)
        used = dict.fromkeys(x for x in a if isinstance(x, str) and x.startswith("%"))
        if op in ("value", "step", "shear", "moments", "follow"):
            c |= {"lattice": names.index(a[0]), "unit": a[1]}
        if op == "value":
            c["flag"] = a[2]
        elif op == "step":
            c |= {"flag": a[2], "lattice2": names.index(a[3]), "unit2": a[4], "flag2": a[5]}
            c |= {"a": int(a[6][1:]), "b": int(a[7][1:])}
        elif op == "shear":
            c |= {"a": registers[a[2]], "b": a[3], "flag": int(a[4]), "halving": shears}
            c |= {"factor": int(a[5][1:]) + 1 if a[5:] and a[5] else 0, "squared": int(bool(a[6:] and a[6]))}
            shears += 1
        elif op == "moments":
            c |= {"lattice2": names.index(a[2]), "unit2": a[3], "a": registers[a[4]], "b": a[5]}
            c |= {"factor": int(a[6][1:]) + 1, "factor2": int(a[7][1:]) + 1}
            c |= {"halving": shears + (not a[8]), "halving2": shears + a[8]}
            shears += 2
        elif op == "follow":
            c |= {"lattice2": names.index(a[2]), "unit2": a[3], "b": a[4], "factor": int(a[5][1:]) + 1}
            c |= {"to": free[-1], "halving": shears}
            shears += 1
        elif op == "sum":
            c |= {"a": registers[a[0]], "b": sums}
            sums += 1
        elif op != "gradient":
            c["a"] = registers[a[0]]
            if len(a) > 1:
                op, c["b"] = (op + "P", int(a[1][1:])) if a[1].startswith("P") else (op, registers[a[1]])
        c["op"] = _NUMBER[op]
        free += [registers[x] for x in used if last[x] == k]
        if op not in ("shear", "moments", "follow", "sum"):
            c["to"] = registers[f"%{k}"] = free.pop()
            if f"%{k}" not in last:
                free.append(c["to"])
        out.append(tuple(c.values()))
    return Code(np.array(out, [(name, np.int64) for name in (*_FIELDS, *_SECOND)]), shears)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
