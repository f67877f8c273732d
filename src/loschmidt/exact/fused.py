"""Passes: ops that are done together, in one walk over a deep block.

A block is deep if it has more elements than lanes. Its ops are done row by row, all ops of a pass to a row before the
next row, which is one walk over memory. Blocks of one row, parts of a block, and whatever `trace` does not
understand are done op by op.

Bytes moved a parameter (int64, float32): SGD 44, ECD 56, Adam and AdamW 60.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from . import native, rowwise
from .csource import Layout
from .digest import chunk_sums, folded, words_sum
from .lattice import peak
from .tape import Lanes, in_one_go, pads
from .trace import Trace, TracedPart, Untraceable
from .world import CHUNK, Block, Part

TILE = 4096
"""Lanes that a thread takes at a time."""


class Refused(Exception):
    """A pass that may not be done; it was undone.

    Args:
        edited: because weights were not the view of their lattice.
        peaks: the largest updates, in units, by op.
    """

    def __init__(self, edited: bool = False, peaks: dict[int, float] | None = None):
        super().__init__(edited)
        self.edited, self.peaks = edited, peaks or {}


class Operands:
    """What a block's pass reads and writes besides lattices: gradients and weights, as they lie in memory.

    Args:
        sizes: elements of each, in the order of the block.
        weights: the parameters.
        gradients: of the same dtype and device; None on the way back, before they are known.
        inspect: raises if weights were edited, or a gradient is not finite; names the parameter.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor] | None,
        inspect: Callable[[], None],
    ):
        self.starts = np.array([0, *itertools.accumulate(sizes)], np.int64)
        self.originals, self.inspect = list(weights), inspect
        self.weights = [w.detach().contiguous() for w in weights]  # the parameters themselves, as a rule
        self.gradients = None if gradients is None else [g.contiguous() for g in gradients]

    def written(self) -> None:
        """Weights were written: copy those that do not lie flat, and tell autograd."""
        for original, w in zip(self.originals, self.weights, strict=True):
            if original.data_ptr() != w.data_ptr():
                original.detach().copy_(w)
        torch.autograd.graph.increment_version(self.originals)

    def show(self, block: Block) -> None:
        """Make the weights the float view of their lattice."""
        starts = self.starts.tolist()
        for w, first, last in zip(self.weights, starts, starts[1:], strict=False):
            w.view(-1).copy_(block.lattices["q"].value(first, last))
        self.written()

    def span(self, tensors: list[torch.Tensor], start: int, stop: int) -> tuple[torch.Tensor, Callable[[], None]]:
        """Elements [start, stop) as one tensor, and what writes it back."""
        starts, pieces = self.starts.tolist(), []
        for t, first, last in zip(tensors, starts, starts[1:], strict=False):
            low, high = max(first, start), min(last, stop)
            if low < high:
                pieces.append(t.view(-1)[low - first : high - first])
        if len(pieces) == 1:
            return pieces[0], lambda: None
        joined = torch.cat(pieces)
        return joined, lambda: torch._foreach_copy_(pieces, list(joined.split([len(p) for p in pieces])))


class _Look:
    """An op that changes nothing: reads the gradient, for the sum of its words and its peak."""

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        trace.peak(part.gradient.name)


def gradient_sum(part: Part) -> int:
    """Sum of the words of a deep block's gradient, in one walk; raises Refused if it is not finite."""
    return Pass(part, [_Look()], True).run(part.block.operands, False)


class Pass:
    """Ops done together, in one walk over one block.

    Args:
        part: the whole of a deep block.
        ops: what is done, in program order; each has a `trace`.
        forward: which way.

    Raises:
        Untraceable: a formula is not understood.
    """

    def __init__(self, part: Part, ops: Sequence[Any], forward: bool):
        self.part, self.ops, self.forward, self.block = part, ops, forward, part.block
        self.trace = self._traced(forward)
        names = dict.fromkeys([*self.trace.changed, *self.trace.read])
        self.lattices = {name: part.block.lattices[name] for name in names}
        self.squares = [name for name in self.trace.changed if self.lattices[name].asked]

    @property
    def reads_gradient(self) -> bool:
        """Whether its formulas read the gradient."""
        return any(i[0] == "gradient" for i in self.trace.instructions)

    def _traced(self, forward: bool) -> Trace:
        trace = Trace()
        self.block.changing = trace.changed
        try:
            for number, op in list(enumerate(self.ops))[:: 1 if forward else -1]:
                known = trace.peaks
                op.trace(TracedPart(self.part, trace), trace, forward)
                trace.peak_of |= {number: known} if trace.peaks > known else {}
        finally:
            self.block.changing = ()
        for _, pairs in self._exchanges(trace, forward):
            if not (in_one_go(pairs) and all(pads(n, d) for n, d in pairs)):
                raise Untraceable("contractions by too much")
        return trace

    def _exchanges(self, trace: Trace, forward: bool) -> list[tuple[Lanes, list[tuple[int, int]]]]:
        """Lanes that are used, and what is done to them a row, each fraction as it is on the way forward."""
        used: dict[int, tuple[Lanes, list[tuple[int, int]]]] = {}
        for _, name, *pair in [i for i in trace.instructions if i[0] == "exchange"]:
            lanes = self.block.lanes_of(name)
            used.setdefault(id(lanes), (lanes, []))[1].append(tuple(pair))
        turned = [(lanes, [(d, n) for n, d in reversed(pairs)]) for lanes, pairs in used.values()]
        return list(used.values()) if forward else turned

    def run(self, operands: Operands, shown: bool) -> int:
        """Do it; the sum of the gradient's words, where it was read on the way forward (else 0).

        Raises:
            Refused: something does not fit, is not a number, or was edited; everything is as it was.
        """
        if not self.trace.instructions:
            return 0
        before, walk = {name: lattice.bound for name, lattice in self.lattices.items()}, None
        for attempt in range(3):
            for name, lattice in self.lattices.items():
                lattice.bound = before[name]
                if attempt or math.isinf(lattice.bound):
                    lattice.bound = before[name] = peak(lattice.n)
            far = {name for name in self.lattices if attempt == 2 or not self._near(name)}
            self.ends = {name: self._end(name, name not in far) for name in self.lattices}
            if min(self.ends.values(), default=1.0) <= 0:
                continue
            walk = self._walk(self.trace, operands, shown, far, self.forward)
            if not walk.edited and self._fits(walk.peaks):
                break
            self._walk(self._traced(not self.forward), operands, shown, far, not self.forward)
            for name, lattice in self.lattices.items():
                lattice.bound = before[name]
            if walk.edited or not all(map(math.isfinite, walk.peaks)):
                raise Refused(walk.edited)
        else:
            raise Refused(peaks={op: walk.peaks[k] for op, k in self.trace.peak_of.items()} if walk else None)
        for name in self.trace.changed:
            self.part.forget(name)
        if shown and "q" in self.trace.changed:
            operands.written()
        for name, sums in zip(self.squares, walk.sums, strict=True):
            self.lattices[name].square = folded(sums, CHUNK)
        return walk.check

    def _near(self, name: str) -> bool:
        lattice = self.lattices[name]
        if lattice.n.dtype is torch.int32:
            return True
        steps = [abs(i[2] - i[3]) for i in self.trace.instructions if i[0] == "exchange" and i[1] == name]
        return lattice.bound <= native.NEAR and max(steps, default=0) <= 1

    def _end(self, name: str, near: bool) -> float:
        """From where on an update is left out."""
        lattice = self.lattices[name]
        if near and lattice.n.dtype is torch.int64:
            return native.NEAR
        exchanges = [i[2:] for i in self.trace.instructions if i[0] == "exchange" and i[1] == name]
        growth = math.prod(max(1.0, n / d) for n, d in exchanges)
        return native.RANGE[lattice.n.dtype] / growth - lattice.bound - 4

    def _fits(self, found: list[float]) -> bool:
        """Whether everything stayed within the lattices; follows their bounds."""
        for op, *a in self.trace.instructions:
            if op == "peak" and not math.isfinite(found[a[1]]):
                return False
            if op == "exchange":
                self.lattices[a[0]].bound = self.lattices[a[0]].bound * (a[1] / a[2]) + 2
            if op == "shear":
                self.lattices[a[0]].bound += found[a[3]]
                if not found[a[3]] < self.ends[a[0]]:
                    return False
            if op in ("exchange", "shear"):
                lattice = self.lattices[a[0]]
                if lattice.bound > lattice.limit * (1.0 if self.forward else 2.0):
                    return False
        return not self.forward or all(self._returns(name, found) for name in self.trace.changed)

    def _returns(self, name: str, found: list[float]) -> bool:
        """Whether the way back, which knows only magnitudes, will find that everything fits."""
        lattice, mine = self.lattices[name], [i for i in self.trace.instructions if i[1:2] == (name,)]
        there_and_back = lattice.bound + 2 * sum(found[i[4]] for i in mine if i[0] == "shear") + 8
        growth = math.prod(max(1.0, i[3] / i[2]) for i in mine if i[0] == "exchange")
        return there_and_back * growth < native.RANGE[lattice.n.dtype]

    def _walk(self, trace: Trace, operands: Operands, shown: bool, far: set[str], forward: bool) -> "Walk":
        """There or back through the rows; words of the tape are moved between rows when they are due."""
        walk = Walk(self, trace, operands, shown, far, forward)
        used, rows = self._exchanges(trace, forward), self.block.lanes.depth
        done = counted = 0  # rows, from the first or on the way back from the last
        while used and counted < rows:
            free = min(lanes.free(pairs) if forward else lanes.free_back() for lanes, pairs in used)
            free = int(min(free, rows - counted))
            for lanes, pairs in used:
                lanes.skip(pairs, free if forward else -free)
            counted += free
            if counted < rows:  # words are moved before a row is done, and so after it is undone
                border = counted if forward else counted + 1
                walk.rows(done, border)
                done, counted = border, counted + 1
                for lanes, pairs in used:
                    (lanes.prepare if forward else lanes.unprepare)(pairs, True)
        walk.rows(done, rows)
        return walk


class Walk:
    """A pass on its way through the rows.

    Attributes:
        peaks: largest magnitudes so far, by number.
        edited: whether a weight was not the view of its lattice.
        check: sum of the gradient's words, mod 2**64.
        sums: chunk sums of squares, for each name that is wanted.
    """

    def __init__(self, done: Pass, trace: Trace, operands: Operands, shown: bool, far: set[str], forward: bool):
        self.block, self.trace, self.operands, self.forward = done.block, trace, operands, forward
        self.shown = shown and "q" in trace.changed
        self.lattices, self.ends, self.far = done.lattices, done.ends, far
        self.squares = done.squares if forward == done.forward else []
        self.peaks, self.edited, self.check = [0.0] * trace.peaks, False, 0
        self.rows_of = self.block.lanes.depth
        groups = -(-self.block.lanes.heads.numel() // CHUNK)
        shape = (len(self.squares), self.block.lanes.depth * groups)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=self.block.device)
        self.numbers, self.splittable = list(trace.parameters), True
        self.at = {"forward": forward} | self._constants()
        self.P = np.array(self.numbers or [0.0])  # numpy: small arrays, made at each step
        self.function = self._native()

    def _constants(self) -> dict[Any, Any]:
        """Where in P there is what exchanges and lattices need."""
        at: dict[Any, Any] = {}

        def put(key: Any, value: float) -> None:
            at[key] = len(self.numbers)
            self.numbers.append(float(value))

        exchanges = [(k, i) for k, i in enumerate(self.trace.instructions) if i[0] == "exchange"]
        for k, (_, _, n, d) in exchanges:
            for name, value in (("n", n), ("d", d), ("minus", n - d), ("rn", 1 / n), ("rd", 1 / d)):
                put(("exchange", k, name), value)
        for name, lattice in self.lattices.items():
            put(("scale", name), 2.0**-lattice.exponent)
            put(("end", name), self.ends[name])
            mine = [i for _, i in exchanges if i[1] == name]
            step = max((abs(n - d) for _, _, n, d in mine), default=0)
            low = 13 + math.ceil(math.log2(max(1, step)))
            high = math.floor(50 - math.log2(max((max(n, d) for _, _, n, d in mine), default=1) + step))
            shift = max(low, min(high, 30))
            self.splittable &= low <= high or name not in self.far
            for key, value in (("shift", shift), ("split", 2.0**shift), ("unsplit", 2.0**-shift)):
                put((key, name), value)
            put(("offset", name), 2.0 ** (63 - shift))
        return at

    def _native(self) -> Any:
        if native.mode(self.block.device) != "native" or not self.splittable:
            return None
        layout = Layout(
            lattices=tuple(self.lattices),
            dtype=next(iter(self.block.lattices.values())).n.dtype,
            far=frozenset(self.far),
            view=self.block.dtype,
            shown=self.shown,
            squares=tuple(self.squares),
            apart=self.block.drift_lanes is not None,
            tile=TILE,
            chunk=CHUNK,
        )
        return native.function(self.trace.instructions, self.trace.peaks, layout, self.at)

    def rows(self, done: int, count: int) -> None:
        """Do rows [done, count) of those on the way, which begins with the last row on the way back."""
        first, last = (done, count) if self.forward else (self.rows_of - count, self.rows_of - done)
        if first < last:
            self._compiled(first, last) if self.function else self._on_tensors(first, last)

    def _compiled(self, first: int, last: int) -> None:
        block, operands, peaks = self.block, self.operands, len(self.peaks)
        found = np.zeros(peaks + 2, np.int64)
        gradients, weights = (_addresses(x or ()) for x in (operands.gradients, operands.weights))
        numbers = {
            "first": first,
            "last": last,
            "lanes": block.lanes.heads.numel(),
            "size": block.size,
            "pieces": len(operands.starts) - 1,
            "threads": torch.get_num_threads(),
        }
        arrays = {"starts": operands.starts, "gradients": gradients, "weights": weights, "P": self.P, "found": found}
        pointers = {name: x.ctypes.data for name, x in arrays.items()}
        pointers |= {"squares": self.sums.data_ptr()}
        heads = [lanes.heads.data_ptr() for lanes in block.tapes]
        native.call(self.function, numbers, pointers, [x.n.data_ptr() for x in self.lattices.values()], heads)
        largest = found[:peaks].view(np.float64).tolist()
        self.peaks = [max(a, b) if b == b else b for a, b in zip(self.peaks, largest, strict=True)]
        self.edited |= bool(found[peaks])
        self.check += int(found[peaks + 1])

    def _on_tensors(self, first: int, last: int) -> None:
        block, operands = self.block, self.operands
        lanes, reads = block.lanes.heads.numel(), any(i[0] == "gradient" for i in self.trace.instructions)
        P = torch.from_numpy(self.P).to(block.device)
        evaluate = rowwise.evaluate if native.mode(block.device) != "compile" else rowwise.compiled()
        steps = [i[:2] if i[0] == "exchange" else i for i in self.trace.instructions]  # n and d are parameters
        for row in range(first, last) if self.forward else reversed(range(first, last)):
            start, stop = row * lanes, min((row + 1) * lanes, block.size)
            g = operands.span(operands.gradients, start, stop)[0] if reads else None
            w, put = operands.span(operands.weights, start, stop) if self.shown else (None, lambda: None)
            n = {name: lattice.n[start:stop] for name, lattice in self.lattices.items()}
            used = {i[1]: block.lanes_of(i[1]).heads for i in steps if i[0] == "exchange"}
            peaks, edited = evaluate(steps, n, g, w, {k: h[: stop - start] for k, h in used.items()}, P, self.at)
            put()
            idle = {name: heads[stop - start :] for name, heads in used.items()}
            rowwise.idle_(self.trace.instructions, idle, P, self.at)
            self.peaks = [max(a, float(b)) if b == b else float(b) for a, b in zip(self.peaks, peaks, strict=True)]
            self.edited |= edited is not None and bool(edited.any())
            if reads and self.forward:
                self.check += words_sum(g, start)
            groups = -(-lanes // CHUNK)
            for i, name in enumerate(self.squares):
                x = n[name].to(torch.float64).mul_(2.0 ** -self.lattices[name].exponent)
                sums = chunk_sums(x * x, CHUNK)
                self.sums[i, row * groups : row * groups + len(sums)] = sums


def _addresses(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return np.array([t.data_ptr() for t in tensors], np.int64)
