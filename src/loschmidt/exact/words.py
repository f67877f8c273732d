"""A stack of 16-bit words: the top in memory, the rest wherever a commit has put it.

A commit writes what was pushed since the last one, and then replaces the chunks by handles to what it wrote. It
needs to know how far down the stack has been since: `floor`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ..errors import OutOfReach


class Chunk(Protocol):
    """Words that lie elsewhere."""

    def __len__(self) -> int:
        """How many."""

    def read(self) -> np.ndarray:
        """The words, dtype uint16, shape (len,); raises DamagedFile if they are not those that were written."""


class Forgotten:
    """Words at the bottom that were given up, with the way back that needs them.

    Args:
        count: how many.
    """

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self) -> np.ndarray:
        """Raises OutOfReach."""
        raise OutOfReach("these words of the tape were given up (by `prune`, or with a damaged file).", "stay above.")


class Words:
    """Last in, first out.

    Attributes:
        chunks: arrays (uint16, never changed in place) and handles, the lowest first.
        count: words held.
        floor: the fewest words held since the last `settle`: the words below it are those that were settled.
        era: how often it was settled.
    """

    def __init__(self) -> None:
        self.chunks: list[np.ndarray | Chunk] = []
        self.count = self.floor = self.era = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """The words that are held, lowest first, a chunk at a time."""
        return (_array(chunk) for chunk in self.chunks if not isinstance(chunk, Forgotten))

    @property
    def forgotten(self) -> int:
        """How many words at the bottom were given up."""
        return sum(len(chunk) for chunk in self.chunks if isinstance(chunk, Forgotten))

    def push(self, words: np.ndarray) -> None:
        """Put words on top, the last of them topmost."""
        if len(words):
            self.chunks.append(words)
            self.count += len(words)

    def take(self, count: int) -> list[np.ndarray]:
        """Take the top `count` words, or all there are; pieces, the topmost first, each with its lowest word first."""
        pieces = []
        while count and self.chunks:
            top = _array(self.chunks[-1])  # read before anything is taken
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
        """The words from number `first` on (0 is the lowest) that are held, dtype uint16."""
        pieces, below = [np.empty(0, np.uint16)], 0
        for chunk in self.chunks:
            if below + len(chunk) > first and not isinstance(chunk, Forgotten):
                pieces.append(_array(chunk)[max(0, first - below) :])
            below += len(chunk)
        return np.concatenate(pieces)

    def settle(self, chunks: Sequence[np.ndarray | Chunk]) -> None:
        """Hold these chunks, which have the same words; they count as written from now on."""
        self.chunks, self.count = list(chunks), sum(map(len, chunks))
        self.floor = self.count
        self.era += 1

    def digest(self) -> str:
        """Digest of all words that are held, and of how many are not; how they lie in chunks does not matter."""
        h = hashlib.blake2b(str(self.forgotten or "").encode(), digest_size=16)
        for words in self:
            h.update(np.ascontiguousarray(words).data)
        return h.hexdigest()

    def snapshot(self) -> tuple:
        """What `restore` brings back; words are shared, not copied."""
        return (list(self.chunks), self.count, self.floor, self.era)

    def restore(self, snapshot: tuple) -> None:
        """Go back to a snapshot."""
        chunks, self.count, floor, era = snapshot
        self.chunks = list(chunks)
        self.floor = floor_after(self.floor, self.era, floor, era, self.count)


def floor_after(floor: int, era: int, kept_floor: int, kept_era: int, count: int) -> int:
    """The floor of a stack that went back to a snapshot with `count` items.

    If nothing was settled in between, what is settled is what it was, too. Else only what both have is.
    """
    return kept_floor if kept_era == era else min(floor, count)


def _array(chunk: np.ndarray | Chunk) -> np.ndarray:
    return chunk if isinstance(chunk, np.ndarray) else chunk.read()
