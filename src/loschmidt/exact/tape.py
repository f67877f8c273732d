"""The tape: the bits that halvings have shifted out, raw, last in first out.

A halving of a row puts one bit of each of its elements on the tape: a plane, padded to whole bytes. Which rows were
halved, by how much, stands in a second stack, the records: one for each op and part, coded in a byte where all rows
did the same, and in a bit a row where some were halved once.

    count of a row    0: nothing; k in 1..999: halved k times; -k: refined k times; 1000 + k: a row of zeros, whose
                      unit was raised by 2**k without a bit; -1000 - k: refined k times with zeros
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import DamagedFile
from .digest import digest
from .stack import Bytes, Forgotten

JUMP = 1000
"""Counts from here on raise the unit of a row of zeros."""
_MASK, _RAW = 251, 252


def encode(counts: np.ndarray) -> bytes:
    """A record of the counts of a part's rows; its last byte says how to read it."""
    if not len(counts) or not counts.any():
        return b"\0"
    first = int(counts[0])
    if 0 < first < _MASK and (counts == first).all():
        return bytes([first])
    if counts.min() >= 0 and counts.max() == 1:
        return np.packbits(counts.astype(np.uint8)).tobytes() + bytes([_MASK])
    return counts.astype("<i2").tobytes() + bytes([_RAW])


class Stack:
    """The tape of one flat buffer.

    Attributes:
        planes: bits shifted out.
        records: which rows were halved.
    """

    __slots__ = ("planes", "records")

    def __init__(self) -> None:
        self.planes, self.records = Bytes(), Bytes()

    def push(self, counts: np.ndarray, planes: np.ndarray) -> None:
        """Put what an op did to a part's rows on top."""
        self.planes.push(planes)
        self.records.push(encode(counts))

    def push_nothing(self) -> None:
        """Put an op that did nothing to a part's rows on top."""
        self.records.push(b"\0")

    def pop_record(self, rows: int) -> np.ndarray:
        """Take the top record, of so many rows: their counts, int16, shape (rows,)."""
        (tag,) = self._take(self.records, 1)
        if tag < _MASK:
            return np.full(rows, tag, np.int16)
        if tag == _MASK:
            return np.unpackbits(self._take(self.records, -(-rows // 8)), count=rows).astype(np.int16)
        if tag == _RAW:
            return self._take(self.records, 2 * rows).view("<i2").astype(np.int16)
        raise DamagedFile(f"the tape holds a record of unknown kind {tag}.", "use another copy of the run.")

    def pop_planes(self, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Take the planes that rows with these counts and lengths have pushed, uint8."""
        return self._take(self.planes, plane_bytes(counts, lengths))

    def take(self, count: int) -> np.ndarray:
        """Take the last bytes of the planes."""
        return self._take(self.planes, count)

    def _take(self, stack: Bytes, count: int) -> np.ndarray:
        if not count:
            return np.empty(0, np.uint8)
        pieces = stack.take(count)
        if sum(map(len, pieces)) < count:
            raise DamagedFile("the tape ends before the record does.", "use another copy of the run.")
        return np.concatenate(pieces[::-1]) if len(pieces) != 1 else pieces[0].copy()

    @property
    def bytes(self) -> int:
        """Bytes of both stacks."""
        return len(self.planes) + len(self.records)

    def digest(self) -> str:
        """Digest of all it holds."""
        return digest([self.planes.digest(), self.records.digest()])

    def snapshot(self) -> tuple:
        """What `restore` brings back; chunks are shared, not copied."""
        return self.planes.snapshot(), self.records.snapshot()

    def restore(self, snapshot: tuple) -> None:
        """Go back to a snapshot."""
        for mine, held in zip((self.planes, self.records), snapshot, strict=True):
            mine.restore(held)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load` rebuilds it."""
        both = {"planes": self.planes, "records": self.records}
        tensors = {k: torch.from_numpy(x.since(0).copy()) for k, x in both.items()}
        return tensors, {"forgotten": [x.forgotten for x in both.values()]}

    def load(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for name, forgotten in zip(self.__slots__, meta["forgotten"], strict=True):
            fresh = Bytes()
            fresh.settle([Forgotten(forgotten)] if forgotten else [])
            fresh.push(tensors[name].cpu().numpy().copy())
            setattr(self, name, fresh)


def plane_bytes(counts: np.ndarray, lengths: np.ndarray) -> int:
    """Bytes of the planes of rows with these counts and lengths."""
    halved = (counts > 0) & (counts < JUMP)
    return int((counts[halved].astype(np.int64) * (-(-lengths[halved] // 8))).sum())


class Tape:
    """All stacks of an optimizer, seen as one tape.

    Attributes:
        stacks: one a flat buffer.
        lattices: all of them, for the bill.
        element_steps: parameters times steps taken, counting only parameters that took part.
    """

    def __init__(self) -> None:
        self.stacks: list[Stack] = []
        self.lattices: list[Any] = []
        self.element_steps = 0

    @property
    def bits(self) -> float:
        """The bill: bits that contractions have destroyed, held in units or stored; 0 at step 0, perhaps negative."""
        return sum((lattice.bill for lattice in self.lattices), 0.0)

    @property
    def bits_per_parameter_step(self) -> float:
        """`bits` over parameters times steps taken (0.0 before the first step)."""
        return self.bits / self.element_steps if self.element_steps else 0.0

    @property
    def stored_bits(self) -> int:
        """Bits that are really kept: planes, their padding, and records."""
        return 8 * self.bytes

    @property
    def growth_bits(self) -> float:
        """Bits that were stored because values grew, beyond the bill (as those of Adam's moments at first)."""
        return sum(max(0.0, lattice.pushed - max(0.0, lattice.bill)) for lattice in self.lattices)

    @property
    def bytes(self) -> int:
        """Bytes that planes and records take."""
        return sum(x.bytes for x in self.stacks)

    def __iter__(self) -> Iterator[Stack]:
        return iter(self.stacks)


def halved_bits(counts: np.ndarray, lengths: np.ndarray) -> int:
    """Bits, without padding, that rows with these counts have put on the tape, net."""
    if not counts.any():
        return 0
    net = np.where(abs(counts) < JUMP, counts, 0).astype(np.int64)
    return int((net * lengths).sum())


def offsets(counts: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Where each op's and row's planes begin among the planes of several ops, in order: int64, (ops, rows)."""
    each = [np.where((c > 0) & (c < JUMP), c, 0).astype(np.int64) * (-(-lengths // 8)) for c in counts]
    flat = np.concatenate(each) if each else np.empty(0, np.int64)
    return (np.cumsum(flat) - flat).reshape(len(each), len(lengths))
