"""A stack of bytes: the top in memory, the rest wherever a commit has put it.

A commit writes what was pushed since the last one, and then replaces the chunks by handles to what it wrote. It
needs to know how far down the stack has been since: `floor`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ..errors import OutOfReach


class Chunk(Protocol):
    """Bytes that lie elsewhere."""

    def __len__(self) -> int:
        """How many."""

    def read(self) -> np.ndarray:
        """The bytes, dtype uint8, shape (len,); raises DamagedFile if they are not those that were written."""


class Forgotten:
    """Bytes at the bottom that were given up, with the way back that needs them.

    Args:
        count: how many.
    """

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self) -> np.ndarray:
        """Raises OutOfReach."""
        raise OutOfReach("this part of the tape was given up (by `prune`, or with a damaged file).", "stay above.")


_SMALL = 1 << 16
"""Bytes from which on a push is a chunk of its own."""


class Bytes:
    """Last in, first out.

    Attributes:
        chunks: arrays (uint8, never changed in place) and handles, the lowest first.
        count: bytes held.
        floor: the fewest bytes held since the last `settle`: those below it are those that were settled.
        era: how often it was settled.
    """

    def __init__(self) -> None:
        self.chunks: list[np.ndarray | Chunk] = []
        self.count = self.floor = self.era = 0
        self._top = bytearray()  # small pushes, above the chunks

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """The bytes that are held, lowest first, a chunk at a time."""
        self._seal()
        return (_array(chunk) for chunk in self.chunks if not isinstance(chunk, Forgotten))

    @property
    def forgotten(self) -> int:
        """How many bytes at the bottom were given up."""
        return sum(len(chunk) for chunk in self.chunks if isinstance(chunk, Forgotten))

    def push(self, data: np.ndarray | bytes) -> None:
        """Put bytes on top, the last of them topmost; an array is kept, and must not be changed any more."""
        if len(data) < _SMALL:
            self._top += bytes(data)
            if len(self._top) >= _SMALL:
                self._seal()
        else:
            self._seal()
            self.chunks.append(data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8))
        self.count += len(data)

    def _seal(self) -> None:
        if self._top:
            self.chunks.append(np.frombuffer(bytes(self._top), np.uint8))
            self._top = bytearray()

    def take(self, count: int) -> list[np.ndarray]:
        """Take the top `count` bytes, or all there are; pieces, the topmost first, each with its lowest byte first."""
        pieces = []
        if count and self._top:
            pieces.append(np.frombuffer(bytes(self._top[-count:]), np.uint8))
            del self._top[-count:]
            count -= len(pieces[0])
            self.count -= len(pieces[0])
        while count and self.chunks:
            try:
                top = _array(self.chunks[-1])
            except BaseException:  # nothing is taken
                for piece in reversed(pieces):
                    self.push(piece)
                raise
            self.chunks.pop()
            if len(top) > count:
                self.chunks.append(top[:-count])
                top = top[-count:]
            pieces.append(top)
            count -= len(top)
            self.count -= len(top)
        self.floor = min(self.floor, self.count)
        return pieces

    def since(self, first: int) -> np.ndarray:
        """The bytes from number `first` on (0 is the lowest) that are held, dtype uint8."""
        self._seal()
        pieces, below = [np.empty(0, np.uint8)], 0
        for chunk in self.chunks:
            if below + len(chunk) > first and not isinstance(chunk, Forgotten):
                pieces.append(_array(chunk)[max(0, first - below) :])
            below += len(chunk)
        return np.concatenate(pieces)

    def settle(self, chunks: Sequence[np.ndarray | Chunk]) -> None:
        """Hold these chunks, which have the same bytes; they count as written from now on."""
        self.chunks, self.count, self._top = list(chunks), sum(map(len, chunks)), bytearray()
        self.floor = self.count
        self.era += 1

    def digest(self) -> str:
        """Digest of all bytes that are held, and of how many are not; how they lie in chunks does not matter."""
        h = hashlib.blake2b(str(self.forgotten or "").encode(), digest_size=16)
        for words in self:
            h.update(np.ascontiguousarray(words).data)
        return h.hexdigest()

    def snapshot(self) -> tuple:
        """What `restore` brings back; chunks are shared, not copied."""
        self._seal()
        return (list(self.chunks), self.count, self.floor, self.era)

    def restore(self, snapshot: tuple) -> None:
        """Go back to a snapshot."""
        chunks, self.count, floor, era = snapshot
        self.chunks, self._top = list(chunks), bytearray()
        self.floor = floor_after(self.floor, self.era, floor, era, self.count)


def floor_after(floor: int, era: int, kept_floor: int, kept_era: int, count: int) -> int:
    """The floor of a stack that went back to a snapshot with `count` items.

    If nothing was settled in between, what is settled is what it was, too. Else only what both have is.
    """
    return kept_floor if kept_era == era else min(floor, count)


def _array(chunk: np.ndarray | Chunk) -> np.ndarray:
    return chunk if isinstance(chunk, np.ndarray) else chunk.read()
