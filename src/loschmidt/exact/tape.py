"""The tape: remainders of contractions, entropy coded to their exact cost, last in first out.

A contraction by n/d must remember a remainder base d and may choose a digit base n. Both go through a
head s, an integer: pop u = s mod n, s = s // n; push s = s * d + r. This is rANS with uniform symbols
(Duda, arXiv 1311.2540), the bits-back form of Maclaurin, Duvenaud and Adams (arXiv 1502.03492): a head
grows by a factor d/n, so the tape by log2(d/n) bits, and no more.

A flat buffer is seen as rows of lanes, one head a lane. Heads stay in [2**32, 2**52), whole numbers in
float64 (int64 division does not vectorise; float64 division is exact here). When they could leave that
range, 16-bit words move between the heads and a stack. When to do so is decided from bounds that depend
only on the operations done, not on the data, so as a rule all lanes move at once and nothing is stored
about who moved; only if lanes were used unequally is a mask kept (and its bits are counted). Lanes that the
last row does not reach are used as if a zero stood there, so that a whole buffer uses all lanes equally.

Below the bottom of the stack lies a reserve of words from a counter, regenerated on demand: so a run may
give bits back (a rescale with c > 1) before it has written any, and `bits` may be negative.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from . import random
from .digest import digest
from .words import Chunk, Forgotten, Words, floor_after

MAX_LANES = 1 << 16
_WORD = 16
_LOW, _HIGH, _START = 32, 52, 40  # log2 of the smallest head, of the largest, and of the first
_DEEP = 1  # so much less where there are several rows: compiled passes divide by multiplying, below 2**51
MOST = 3.9  # bits by which heads may grow or shrink between two moves of words
_ROW = 7  # numbers of a move in a file
_UNIT = 1 << 40  # bounds are whole multiples of 2**-40 bits: added and subtracted without rounding


@lru_cache(maxsize=4096)
def _growth(n: int, d: int, low: int) -> tuple[int, int]:
    """How far log2 of the largest and of the smallest head can move in `pop n, push d`, in _UNITs."""
    change = math.log2(d / n) * _UNIT
    floors = n + d if low == _LOW else n  # relative to 2**low; n is what can happen, n + d what was assumed at first
    slack = floors * (_UNIT >> low) * 1.5 + 64
    return math.ceil(change + slack), math.floor(change - slack)


@lru_cache(maxsize=4096)
def _range(pairs: tuple[tuple[int, int], ...], bottom: int) -> tuple[int, int, int, int]:
    """How far the smallest head can go down and the largest up on the way, and where they end, in _UNITs."""
    low = high = down = up = 0
    for n, d in pairs:
        above, below = _growth(n, d, bottom)
        up, down = up + above, down + below
        low, high = min(low, down), max(high, up)
    return low, high, down, up


def idles(n: int, d: int) -> bool:
    """Whether `pop n, push d` is done to lanes that the last row does not reach: a zero there must stay one."""
    return n <= d


def pads(n: int, d: int) -> bool:
    """Whether those lanes then count as used; if it is not done to them, it must be next to nothing."""
    return idles(n, d) or _growth(n, d, _LOW - _DEEP)[0] >= 0


def in_one_go(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether words need not move between these operations, one after the other."""
    low, high, *_ = _range(tuple(pairs), _LOW - _DEEP)
    return max(high, -low) <= MOST * _UNIT


def _times(room: int, step: int) -> float:
    """How many times one can go up by `step` and start from within the room: at 0, `step`, 2 `step`, ..."""
    return 0 if room < 0 else math.inf if step <= 0 else room // step + 1


@dataclass(frozen=True)
class Move:
    """Words moved before operation `index`: what is needed to move them back."""

    index: int
    emitted: bool
    mask: np.ndarray | None  # the lanes that moved (see _pack), or None for all of them
    low: int  # bounds before the move
    high: int
    reserve: int = 0  # how many of the absorbed words came from the reserve

    @property
    def bits(self) -> int:
        """Bits of the mask."""
        return 0 if self.mask is None else 8 * self.mask.nbytes

    def row(self) -> list[int]:
        """Everything but the mask, of which only the size and the kind (bits or positions)."""
        size, positions = (-1, 0) if self.mask is None else (self.mask.nbytes, self.mask.dtype == np.uint32)
        return [self.index, self.emitted, self.low, self.high, self.reserve, size, positions]


def _pack(mask: np.ndarray) -> np.ndarray:
    """The shorter of: where the mask changes, starting from False (uint32); or its bits (uint8)."""
    changes = np.flatnonzero(np.diff(mask, prepend=False)).astype(np.uint32)
    return changes if 32 * len(changes) < len(mask) else np.packbits(mask)


def _unpack(packed: np.ndarray, size: int) -> np.ndarray:
    if packed.dtype == np.uint8:
        return np.unpackbits(packed, count=size)
    steps = np.zeros(size, np.int64)
    steps[packed] = 1
    return np.cumsum(steps) % 2


class Lanes:
    """The heads and the words below them, for one flat buffer of `size` elements.

    Args:
        size: elements of the buffer; element i uses lane i mod `heads.numel()`.
        seed: key of the starting heads and of the reserve.
        device: where the heads live; words are on the host.
    """

    def __init__(self, size: int, seed: tuple[int | str, ...] = (0,), device: torch.device | str = "cpu"):
        rows = max(1, -(-size // MAX_LANES))
        lanes = -(-size // rows)
        self.depth, self.size = rows, size
        self.bottom, self.top = (_LOW - _DEEP, _HIGH - _DEEP) if rows > 1 else (_LOW, _HIGH)
        self.seed = ("tape", *seed)
        first = random.generator(*self.seed, "heads").integers(1 << _START, 1 << (_START + 1), lanes)
        self.heads = torch.from_numpy(first.astype(np.float64)).to(device)
        self.low, self.high = _START * _UNIT, (_START + 1) * _UNIT
        self.index = 0
        self.moves: list[Move] = []
        self.moves_floor = 0  # the fewest moves held since the last commit
        self.stack = Words()
        self.borrowed = 0  # words taken from the reserve
        self._start_bits = self._head_bits()

    # -- the coder -----------------------------------------------------------------------------------

    def rows(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Cut the elements [start, stop) at row ends: (start, stop, first lane) of each piece."""
        lanes, out = max(1, self.heads.numel()), []
        while start < stop:
            end = min(stop, (start // lanes + 1) * lanes)
            out.append((start, end, start % lanes))
            start = end
        return out

    def is_whole(self, first: int, last: int, n: int, d: int) -> bool:
        """Whether a piece of a row uses all lanes equally: it is all of the row, or all there is of the last one."""
        if last - first == self.heads.numel():
            return True
        return self.depth > 1 and last == self.size and not first % self.heads.numel() and pads(n, d)

    def free(self, pairs: Sequence[tuple[int, int]]) -> float:
        """Before how many calls of `prepare` in a row no words will be moved."""
        low, high, down, up = _range(tuple(pairs), self.bottom)
        above = _times(self.top * _UNIT - self.high - high, up)
        return min(above, _times(self.low + low - self.bottom * _UNIT, -down))

    def free_back(self) -> float:
        """Before how many calls of `unprepare` in a row no words will be moved."""
        return self.index - 1 - self.moves[-1].index if self.moves else math.inf

    def skip(self, pairs: Sequence[tuple[int, int]], count: int) -> None:
        """`prepare`, on every lane, `count` times before which no words are moved; or, if negative, `unprepare`."""
        *_, down, up = _range(tuple(pairs), self.bottom)
        self._shift(count * up, count * down, True, 1)
        self.index += count

    def prepare(self, pairs: Sequence[tuple[int, int]], whole: bool) -> None:
        """Make room for one `pop n, push d` after the other on some lanes (`whole`: on every lane)."""
        low, high, down, up = _range(tuple(pairs), self.bottom)
        while self.high + high > self.top * _UNIT:
            self._emit()
        while self.low + low < self.bottom * _UNIT:
            self._absorb()
        self._shift(up, down, whole, 1)
        self.index += 1

    def unprepare(self, pairs: Sequence[tuple[int, int]], whole: bool) -> None:
        """Undo `prepare`, after the operations themselves were undone."""
        self.index -= 1
        _, _, down, up = _range(tuple(pairs), self.bottom)
        self._shift(up, down, whole, -1)
        while self.moves and self.moves[-1].index == self.index:
            move = self.moves.pop()
            self.moves_floor = min(self.moves_floor, len(self.moves))
            lanes = self._lanes_of(move)
            count = self.heads.numel() if lanes is None else lanes.numel()
            if move.emitted:
                self._push_low(lanes, self._take(count)[0])
            else:
                words = self._pop_low(lanes)
                self.borrowed -= move.reserve
                if move.reserve < count:
                    self.stack.push(words[move.reserve :])
            self.low, self.high = move.low, move.high

    def _shift(self, up: int, down: int, whole: bool, sign: int) -> None:
        # Lanes that were not used keep their heads: then the range can only widen.
        self.high += sign * (up if whole else max(up, 0))
        self.low += sign * (down if whole else min(down, 0))

    def _emit(self) -> None:
        everyone = self.low >= (self.bottom + _WORD) * _UNIT
        mask = None if everyone else self.heads >= 2.0 ** (self.bottom + _WORD)
        move = self._begin_move(True, mask)
        self.stack.push(self._pop_low(self._lanes_of(move)))
        self._end_move(move)

    def _absorb(self) -> None:
        everyone = self.high <= (self.top - _WORD) * _UNIT
        mask = None if everyone else self.heads < 2.0 ** (self.top - _WORD)
        move = self._begin_move(False, mask)
        lanes = self._lanes_of(move)
        words, reserve = self._take(self.heads.numel() if lanes is None else lanes.numel())
        self._push_low(lanes, words)
        self._end_move(Move(move.index, False, move.mask, move.low, move.high, reserve))

    def _begin_move(self, emitted: bool, mask: torch.Tensor | None) -> Move:
        if mask is not None:
            mask = None if bool(mask.all()) else _pack(mask.cpu().numpy())
        return Move(self.index, emitted, mask, self.low, self.high)

    def _end_move(self, move: Move) -> None:
        self.moves.append(move)
        if move.mask is None and abs(self.high - self.low) < 2 * _UNIT:  # data independent: no pass, no sync
            shift = -_WORD * _UNIT if move.emitted else _WORD * _UNIT
            self.low, self.high = self.low + shift - 512, self.high + shift + 512
        else:
            low, high = torch.aminmax(self.heads)
            self.low = math.floor(math.log2(float(low)) * _UNIT) - 512
            self.high = math.ceil(math.log2(float(high)) * _UNIT) + 512

    def _lanes_of(self, move: Move) -> torch.Tensor | None:
        if move.mask is None:
            return None
        picked = np.flatnonzero(_unpack(move.mask, self.heads.numel()))
        return torch.from_numpy(picked).to(self.heads.device)

    def _pop_low(self, lanes: torch.Tensor | None) -> np.ndarray:
        heads = self.heads if lanes is None else self.heads[lanes]
        words = heads.to(torch.int64).to(torch.int16).cpu().numpy().view(np.uint16)  # the last 16 bits
        heads.mul_(2.0**-_WORD).floor_()
        if lanes is not None:
            self.heads[lanes] = heads
        return words

    def _push_low(self, lanes: torch.Tensor | None, words: np.ndarray) -> None:
        low = torch.from_numpy(words.astype(np.float64)).to(self.heads.device)
        if lanes is None:
            self.heads.mul_(2.0**_WORD).add_(low)
        else:
            self.heads[lanes] = self.heads[lanes] * 2.0**_WORD + low

    def _take(self, count: int) -> tuple[np.ndarray, int]:
        """The top `count` words of the stack, the lowest first, and how many of them the reserve gave."""
        pieces = self.stack.take(count)
        missing = count - sum(map(len, pieces))
        if missing:
            pieces.append(self._reserve(self.borrowed, missing))
            self.borrowed += missing
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16), missing

    def _reserve(self, first: int, count: int) -> np.ndarray:
        size = 1 << 16
        blocks = range(first // size, (first + count - 1) // size + 1)
        words = np.concatenate([random.generator(*self.seed, "reserve", b).integers(0, 1 << 16, size) for b in blocks])
        return words.astype(np.uint16)[first - blocks[0] * size :][:count]

    # -- what it holds -------------------------------------------------------------------------------

    @property
    def words(self) -> int:
        """16-bit words on the stack."""
        return len(self.stack)

    @property
    def bits(self) -> float:
        """Bits held, net of the starting reserve: 0 before the first operation, perhaps negative later."""
        words = _WORD * (self.words - self.borrowed) + sum(m.bits for m in self.moves)
        return self._head_bits() - self._start_bits + words

    @property
    def bytes(self) -> int:
        """Bytes of words and masks, and of the heads once they were used."""
        return (8 * self.heads.numel() if self.index else 0) + 2 * self.words + sum(m.bits for m in self.moves) // 8

    def _head_bits(self) -> float:
        return float(torch.log2(self.heads).sum()) if self.heads.numel() else 0.0

    def digest(self) -> str:
        """Digest of heads and words."""
        return digest([self.heads, self.stack.digest(), self.borrowed, self.index])

    # -- snapshots and files -------------------------------------------------------------------------

    def snapshot(self) -> tuple:
        """A copy that `restore` brings back; words are shared, not copied."""
        moves = (list(self.moves), self.moves_floor, self.stack.era)
        return (self.heads.clone(), self.low, self.high, self.index, moves, self.stack.snapshot(), self.borrowed)

    def restore(self, snapshot: tuple) -> None:
        """Go back to a snapshot."""
        heads, self.low, self.high, self.index, (moves, floor, era), stack, self.borrowed = snapshot
        self.heads.copy_(heads)
        self.moves = list(moves)
        self.moves_floor = floor_after(self.moves_floor, self.stack.era, floor, era, len(moves))
        self.stack.restore(stack)

    def settle(self, chunks: Sequence[np.ndarray | Chunk]) -> None:
        """Words and moves are written: hold the words in these chunks from now on."""
        self.stack.settle(chunks)
        self.moves_floor = len(self.moves)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load` rebuilds the same bits: `core`, and all words and moves."""
        words = torch.from_numpy(self.stack.since(0).view(np.int16).copy())
        heads, meta = self.core()
        return {"heads": heads.clone(), "words": words, **tensors_of_moves(self.moves)}, meta

    def core(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """The heads (not a copy), and JSON values: what is not a stack."""
        meta = {"seed": self.seed[1:], "low": self.low, "high": self.high, "index": self.index}
        return self.heads, meta | {"borrowed": self.borrowed, "forgotten": self.stack.forgotten}

    def load(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Take over what `state` gave; the size must be the same."""
        fresh = Lanes(0, tuple(meta["seed"]))
        first = random.generator(*fresh.seed, "heads").integers(1 << _START, 1 << (_START + 1), self.heads.numel())
        self.heads.copy_(torch.from_numpy(first.astype(np.float64)))
        self.seed, self._start_bits = fresh.seed, self._head_bits()
        self.heads.copy_(tensors["heads"])
        self.stack = Words()
        self.stack.settle([Forgotten(meta["forgotten"])] if meta["forgotten"] else [])
        self.stack.push(tensors["words"].cpu().numpy().view(np.uint16).copy())
        self.moves, self.moves_floor = moves_of(tensors), 0
        self.low, self.high, self.index = meta["low"], meta["high"], meta["index"]
        self.borrowed = meta["borrowed"]


def tensors_of_moves(moves: Sequence[Move]) -> dict[str, torch.Tensor]:
    """Moves as tensors: `moves` int64 (count, 7), `masks` uint8."""
    masks = [m.mask.view(np.uint8) for m in moves if m.mask is not None]
    return {
        "moves": torch.tensor([m.row() for m in moves], dtype=torch.int64).view(-1, _ROW),
        "masks": torch.from_numpy(np.concatenate(masks) if masks else np.empty(0, np.uint8)),
    }


def moves_of(tensors: dict[str, torch.Tensor]) -> list[Move]:
    """Inverse of `tensors_of_moves`."""
    packed, at, moves = tensors["masks"].cpu().numpy(), 0, []
    for index, emitted, low, high, reserve, size, positions in tensors["moves"].tolist():
        mask = None
        if size >= 0:
            mask = packed[at : at + size].copy().view(np.uint32 if positions else np.uint8)
            at += size
        moves.append(Move(index, bool(emitted), mask, low, high, reserve))
    return moves


class Tape:
    """All lanes of an optimizer, seen as one tape.

    Attributes:
        lanes: one `Lanes` a flat buffer.
        element_steps: parameters times steps taken, counting only parameters that took part.
    """

    def __init__(self) -> None:
        self.lanes: list[Lanes] = []
        self.element_steps = 0

    @property
    def bits(self) -> float:
        """Bits on the tape, net of its starting reserve; 0 at step 0."""
        return sum((lane.bits for lane in self.lanes), 0.0)

    @property
    def bits_per_parameter_step(self) -> float:
        """`bits` over parameters times steps taken (0.0 before the first step)."""
        return self.bits / self.element_steps if self.element_steps else 0.0

    @property
    def bytes(self) -> int:
        """Bytes that words, masks and heads take now; heads that hold nothing yet are not counted."""
        return sum(x.bytes for x in self.lanes)

    def __iter__(self) -> Iterator[Lanes]:
        return iter(self.lanes)
