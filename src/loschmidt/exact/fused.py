"""Passes: ops that are done together, in one walk over a deep block.

A block is deep if it has more elements than lanes. Its ops are done row by row, all ops of a pass to a row before the
next row, which is one walk over memory. Blocks of one row, parts of a block, and whatever `trace` does not
understand are done op by op.

Bytes moved a parameter (int64, float32): SGD 44, ECD 52, Adam and AdamW 60.
"""

import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import native
from .course import NEAR, Pairs, exchanges, fits_between_rows
from .lattice import peak
from .tape import Lanes
from .trace import Trace, TracedPart, Untraceable
from .walk import Walk
from .world import Block, Part


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

    Attributes:
        shown: whether the weights are known to be the view of their lattice now: a pass has compared and written them,
            or they were inspected and did not move. Only what was really done sets it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor] | None,
        inspect: Callable[[], None],
    ):
        self.starts = array("q", (0, *itertools.accumulate(sizes)))
        self.originals, self.inspect, self.shown = list(weights), inspect, False
        self.weights = [w if w.is_contiguous() else w.detach().contiguous() for w in weights]
        self.gradients = None if gradients is None else [g if g.is_contiguous() else g.contiguous() for g in gradients]

    @property
    def size(self) -> int:
        """Elements of the weights."""
        return self.starts[-1]

    def written(self) -> None:
        """Weights were written: copy those that do not lie flat, and tell autograd."""
        self.shown = True
        for original, w in zip(self.originals, self.weights, strict=True):
            if original is not w:
                original.detach().copy_(w)
        torch.autograd.graph.increment_version(self.originals)

    def show(self, block: Block) -> None:
        """Make the weights the float view of their lattice."""
        starts = self.starts.tolist()
        for w, first, last in zip(self.weights, starts, starts[1:], strict=False):
            w.detach().view(-1).copy_(block.lattices["q"].value(first, last))
        self.written()

    def span(self, tensors: list[torch.Tensor], start: int, stop: int) -> tuple[torch.Tensor, Callable[[], None]]:
        """Elements [start, stop) as one tensor, and what writes it back."""
        starts, pieces = self.starts.tolist(), []
        for t, first, last in zip(tensors, starts, starts[1:], strict=False):
            low, high = max(first, start), min(last, stop)
            if low < high:
                pieces.append(t.detach().view(-1)[low - first : high - first])
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
        if len(names) > native.MOST:
            raise Untraceable(f"{len(names)} lattices")
        self.squares = [name for name in self.trace.changed if self.lattices[name].asked]

    @property
    def reads_gradient(self) -> bool:
        """Whether its formulas read the gradient."""
        return self.trace.course.reads_gradient

    def _traced(self, forward: bool) -> Trace:
        trace = Trace()
        self.block.changing = trace.changed
        try:
            for number, op in list(enumerate(self.ops))[:: 1 if forward else -1]:
                known = trace.peaks
                op.trace(TracedPart(self.part, trace), trace, forward)
                if trace.peaks > known:
                    trace.peak_of[number] = known
        finally:
            self.block.changing = ()
        if not all(fits_between_rows(pairs) for _, pairs in self._exchanges(trace, forward)):
            raise Untraceable("contractions by too much")
        return trace

    def _exchanges(self, trace: Trace, forward: bool) -> list[tuple[Lanes, Pairs]]:
        """Lanes that are used, and what is done to them a row, each fraction as it is on the way forward."""
        block = self.block
        used = exchanges(trace.course, block.drift_lanes is not None, forward)
        return [(block.drift_lanes if of_q else block.lanes, pairs) for of_q, pairs in used]

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
            far = frozenset(name for name in self.lattices if attempt == 2 or not self._near(name))
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
        for name, square in zip(self.squares, walk.squared(), strict=True):
            self.lattices[name].square = square
        return walk.check

    def _near(self, name: str) -> bool:
        lattice = self.lattices[name]
        if lattice.n.dtype is torch.int32:
            return True
        return lattice.bound <= NEAR and (name in self.trace.course.nearly or name not in self.trace.course.pairs)

    def _end(self, name: str, near: bool) -> float:
        """From where on an update is left out."""
        lattice = self.lattices[name]
        if near and lattice.n.dtype is torch.int64:
            return NEAR
        return native.RANGE[lattice.n.dtype] / self.trace.course.growth.get(name, 1.0) - lattice.bound - 4

    def _fits(self, found: list[float]) -> bool:
        """Whether everything stayed within the lattices; follows their bounds."""
        most = 1.0 if self.forward else 2.0
        for op, name, *a in self.trace.course.moves:
            if op == "peak":
                if not math.isfinite(found[a[0]]):
                    return False
                continue
            lattice = self.lattices[name]
            if op == "exchange":
                lattice.bound = lattice.bound * (a[0] / a[1]) + 2
            else:
                lattice.bound += found[a[2]]
                if not found[a[2]] < self.ends[name]:
                    return False
            if lattice.bound > lattice.limit * most:
                return False
        return not self.forward or all(self._returns(name, found) for name in self.trace.changed)

    def _returns(self, name: str, found: list[float]) -> bool:
        """Whether the way back, which knows only magnitudes, will find that everything fits."""
        lattice, moved = self.lattices[name], self.trace.course
        there_and_back = lattice.bound + 2 * sum(found[k] for k in moved.shears[name]) + 8
        return there_and_back * moved.shrinking[name] < native.RANGE[lattice.n.dtype]

    def _walk(
        self,
        trace: Trace,
        operands: Operands,
        shown: bool,
        far: frozenset[str],
        forward: bool,
        span: tuple[int, int] | None = None,
    ) -> Walk:
        """There or back through the rows (of a span); words of the tape are moved between rows when they are due.

        If anything fails on the way, it takes back the rows that were done.
        """
        low, high = span or (0, self.block.lanes.depth)
        walk = Walk(self, trace, operands, shown, far, forward, (low, high))
        if walk.fresh:  # what would take it back is made before anything moves
            Walk(self, self._traced(not forward), operands, shown, far, not forward, (low, high))
        used, rows = self._exchanges(trace, forward), high - low
        done = counted = 0  # rows, from the first or on the way back from the last
        moved = False  # whether words were moved before row `done`
        try:
            while used and counted < rows:
                free = min(lanes.free(pairs) if forward else lanes.free_back() for lanes, pairs in used)
                free = int(min(free, rows - counted))
                for lanes, pairs in used:
                    lanes.skip(pairs, free if forward else -free)
                counted += free
                if counted < rows:  # words are moved before a row is done, and so after it is undone
                    border = counted if forward else counted + 1
                    walk.rows(done, border)
                    done, counted, moved = border, counted + 1, forward
                    for lanes, pairs in used:
                        (lanes.prepare if forward else lanes.unprepare)(pairs, True)
            walk.rows(done, rows)
        except BaseException:
            unmoved = int(moved and walk.finished == done)
            for lanes, pairs in used:
                lanes.skip(pairs, (counted - walk.finished - unmoved) * (-1 if forward else 1))
                if unmoved:
                    lanes.unprepare(pairs, True)
            ends = (low, low + walk.finished) if forward else (high - walk.finished, high)
            self._walk(self._traced(not forward), operands, shown, far, not forward, ends)
            raise
        return walk
