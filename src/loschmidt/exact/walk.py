"""A pass on its way through the rows of a block: as native code, or on tensors."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import native, rowwise
from .csource import Layout
from .digest import chunk_sums, words_sum
from .trace import Trace
from .world import CHUNK

if TYPE_CHECKING:
    from .fused import Operands, Pass

BLOCK = 4096
"""Lanes whose squares a thread keeps at a time."""
TILE = 32768
"""Most lanes that a thread takes at a time: their heads stay in its second cache, and memory is read in long runs."""


class Walk:
    """Does rows of a pass, in its direction.

    Attributes:
        peaks: largest magnitudes so far, by number.
        edited: whether a weight was not the view of its lattice.
        check: sum of the gradient's words, mod 2**64.
        sums: chunk sums of squares, for each name that is wanted.
    """

    def __init__(
        self,
        done: "Pass",
        trace: Trace,
        operands: "Operands",
        shown: bool,
        far: set[str],
        forward: bool,
        span: tuple[int, int],
    ):
        self.block, self.trace, self.operands, self.forward = done.block, trace, operands, forward
        self.shown = shown and "q" in trace.changed
        self.lattices, self.ends, self.far = done.lattices, done.ends, far
        self.squares = done.squares if forward == done.forward else []
        self.peaks, self.edited, self.check = [0.0] * trace.peaks, False, 0
        self.span, self.finished, self.fresh = span, 0, False
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
            block=BLOCK,
            chunk=CHUNK,
        )
        function, self.fresh = native.function(self.trace.instructions, self.trace.peaks, layout, self.at)
        return function

    def rows(self, done: int, count: int) -> None:
        """Do rows [done, count) of those on the way, which begins with the last row on the way back."""
        low, high = self.span
        first, last = (low + done, low + count) if self.forward else (high - count, high - done)
        if first < last:
            self._compiled(first, last) if self.function else self._on_tensors(first, last)

    def _compiled(self, first: int, last: int) -> None:
        block, operands, peaks = self.block, self.operands, len(self.peaks)
        found = np.zeros(peaks + 2, np.int64)
        gradients, weights = (_addresses(x or ()) for x in (operands.gradients, operands.weights))
        threads, blocks = torch.get_num_threads(), -(-block.lanes.heads.numel() // BLOCK)
        numbers = {
            "first": first,
            "last": last,
            "lanes": block.lanes.heads.numel(),
            "size": block.size,
            "pieces": len(operands.starts) - 1,
            "threads": threads,
            "tile": min(-(-blocks // threads) * BLOCK, TILE),
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
        self.finished += last - first

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
            held = [
                (x, x.clone()) for x in (*n.values(), *{id(h): h for h in used.values()}.values(), w) if x is not None
            ]
            try:
                peaks, edited = evaluate(steps, n, g, w, {k: h[: stop - start] for k, h in used.items()}, P, self.at)
                idle = {name: heads[stop - start :] for name, heads in used.items()}
                rowwise.idle_(self.trace.instructions, idle, P, self.at)
            except BaseException:
                for x, before in held:
                    x.copy_(before)
                raise
            put()
            self.finished += 1
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
