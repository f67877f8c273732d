"""A pass on its way through the rows of a block: as native code, or on tensors."""

import functools
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import native, rowwise
from .csource import Layout
from .digest import chunk_sums, folded, words_sum
from .trace import Instruction, Trace
from .world import CHUNK

if TYPE_CHECKING:
    from .fused import Operands, Pass

TILE = 32768
"""Most lanes that a thread takes at a time: their heads stay in its second cache, and memory is read in long runs."""


@functools.lru_cache(128)  # a schedule of a decay makes new ones
def _numbers(
    instructions: tuple[Instruction, ...], layout: Layout, exponents: tuple[int, ...]
) -> tuple[list[float], bool]:
    """What P holds besides parameters, in the order of `csource.places`; the ends of lattices are put in later.

    And whether far lattices can be split for these exchanges.
    """
    exchanges = [i[1:] for i in instructions if i[0] == "exchange"]
    numbers = [x for _, n, d in exchanges for x in (n, d, n - d, 1 / n, 1 / d)]
    splittable = True
    for name, exponent in zip(layout.lattices, exponents, strict=True):
        mine = [pair for target, *pair in exchanges if target == name]
        step = max((abs(n - d) for n, d in mine), default=0)
        low = 13 + math.ceil(math.log2(max(1, step)))
        high = math.floor(50 - math.log2(max((max(pair) for pair in mine), default=1) + step))
        shift = max(low, min(high, 30))
        splittable &= low <= high or name not in layout.far
        numbers += [2.0**-exponent, 0.0, shift, 2.0**shift, 2.0**-shift, 2.0 ** (63 - shift)]
    return numbers, splittable


class Walk:
    """Does rows of a pass, in its direction.

    Attributes:
        peaks: largest magnitudes so far, by number.
        edited: whether a weight was not the view of its lattice.
        check: sum of the gradient's words, mod 2**64.
    """

    def __init__(
        self,
        done: "Pass",
        trace: Trace,
        operands: "Operands",
        shown: bool,
        far: frozenset[str],
        forward: bool,
        span: tuple[int, int],
    ):
        self.block, self.trace, self.operands, self.forward = done.block, trace, operands, forward
        self.shown = shown and "q" in trace.changed
        self.lattices = done.lattices
        self.squares = done.squares if forward == done.forward else []
        self.peaks, self.edited, self.check = [0.0] * trace.peaks, False, 0
        self.span, self.finished = span, 0
        groups = -(-self.block.lanes.heads.numel() // CHUNK)
        shape = (len(self.squares), self.block.lanes.depth * groups)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=self.block.device) if self.squares else ()
        layout = Layout(
            lattices=tuple(self.lattices),
            dtypes=tuple(lattice.n.dtype for lattice in self.lattices.values()),
            far=far,
            view=self.block.dtype,
            shown=self.shown,
            squares=tuple(self.squares),
            apart=self.block.drift_lanes is not None,
            chunk=CHUNK,
        )
        exponents = tuple(lattice.exponent for lattice in self.lattices.values())
        numbers, splittable = _numbers(tuple(trace.instructions), layout, exponents)
        self.code = native.code(trace.course.shape, layout, len(trace.parameters), forward)
        self.P = array("d", (*trace.parameters, *numbers))
        for name in self.lattices:
            self.P[self.code.at["end", name]] = done.ends[name]
        self.function, self.fresh = None, False
        if splittable and native.mode(self.block.device) == "native":
            self.function, self.fresh = native.function(self.code)

    def rows(self, done: int, count: int) -> None:
        """Do rows [done, count) of those on the way, which begins with the last row on the way back."""
        low, high = self.span
        first, last = (low + done, low + count) if self.forward else (high - count, high - done)
        if first < last:
            self._compiled(first, last) if self.function else self._on_tensors(first, last)

    def squared(self) -> Sequence[torch.Tensor]:
        """Sums of squares, 0-dimensional, of each name that was wanted; after the last row."""
        if self.function:
            return [sums[0].clone() for sums in self.sums]
        return [folded(sums, CHUNK) for sums in self.sums]

    def _compiled(self, first: int, last: int) -> None:
        block, operands, peaks = self.block, self.operands, len(self.peaks)
        found = array("q", bytes(8 * (peaks + 2)))
        gradients, weights = (
            array("q", [t.data_ptr() for t in x or ()]) for x in (operands.gradients, operands.weights)
        )
        lanes, threads = block.lanes.heads.numel(), torch.get_num_threads()
        tile = min(-(-lanes // CHUNK // threads) * CHUNK, TILE)
        final = self.finished + last - first == self.span[1] - self.span[0]
        native.call(
            self.function,
            numbers=(first, last, lanes, block.size, len(operands.weights), threads, tile, final),
            operands=(operands.starts, gradients, weights),
            lattices=[x.n.data_ptr() for x in self.lattices.values()],
            heads=[tape.heads.data_ptr() for tape in block.tapes],
            others=(self.P, found),
            squares=self.sums.data_ptr() if self.squares else 0,
        )
        self.finished += last - first
        self._note(found)

    def _note(self, found: array) -> None:
        """Take over what rows found: the bits of their peaks, whether weights were edited, the sum of words."""
        peaks = array("d", found[:-2].tobytes())
        self.peaks = [max(a, b) if b == b else b for a, b in zip(self.peaks, peaks, strict=True)]
        self.edited |= bool(found[-2])
        self.check += found[-1]

    def _on_tensors(self, first: int, last: int) -> None:
        block, operands = self.block, self.operands
        lanes, course = block.lanes.heads.numel(), self.trace.course
        reads, steps = course.reads_gradient, course.shape  # n and d are parameters
        P = torch.tensor(self.P, dtype=torch.float64, device=block.device)
        largest = torch.zeros(len(self.peaks), dtype=torch.float64, device=block.device)
        others = torch.zeros(2, dtype=torch.int64, device=block.device)  # read when all rows are done, without a wait
        evaluate = rowwise.evaluate if native.mode(block.device) != "compile" else rowwise.compiled()
        for row in range(first, last) if self.forward else reversed(range(first, last)):
            start, stop = row * lanes, min((row + 1) * lanes, block.size)
            g = operands.span(operands.gradients, start, stop)[0] if reads else None
            w, put = operands.span(operands.weights, start, stop) if self.shown else (None, lambda: None)
            n = {name: lattice.n[start:stop] for name, lattice in self.lattices.items()}
            used = {i[1]: block.lanes_of(i[1]).heads for i in steps if i[0] == "exchange"}
            held = [
                (x, x.clone()) for x in (*n.values(), *{id(h): h for h in used.values()}.values(), w) if x is not None
            ]
            try:
                peaks, edited = evaluate(
                    steps, n, g, w, {k: h[: stop - start] for k, h in used.items()}, P, self.code.at
                )
                idle = {name: heads[stop - start :] for name, heads in used.items()}
                rowwise.idle_(self.trace.instructions, idle, P, self.code.at, self.forward)
            except BaseException:
                for x, before in held:
                    x.copy_(before)
                raise
            put()
            self.finished += 1
            if peaks:
                largest = torch.maximum(largest, torch.stack(peaks))
            if edited is not None:
                others[0] += edited.any()
            if reads and self.forward:
                others[1] += words_sum(g, start)
            groups = -(-lanes // CHUNK)
            for i, name in enumerate(self.squares):
                x = n[name].to(torch.float64).mul_(2.0 ** -self.lattices[name].exponent)
                sums = chunk_sums(x * x, CHUNK)
                self.sums[i, row * groups : row * groups + len(sums)] = sums
        self._note(array("q", torch.cat([largest.view(torch.int64), others]).tolist()))
