"""Chains of segments: which of them stay, and where the next one begins. Pure functions on heights."""

from collections.abc import Sequence
from itertools import zip_longest

from .manifest import Heights, Segment, at_most

LARGEST = 1 << 24
"""A segment takes in those below it up to this many bytes, so that segments stay few without being written often."""
_HEADER = 1024  # about what a file holds besides its tensors


def base_of(chain: Sequence[Segment], kept: int, forgotten: Heights) -> Heights:
    """The heights above the lowest `kept` segments."""
    return chain[kept - 1].stop if kept else forgotten


def kept_below(chain: Sequence[Segment], floor: Heights) -> int:
    """How many of the lowest segments lie wholly below the floor, and so are still what they were."""
    count = len(chain)
    while count and not at_most(chain[count - 1].stop, floor):
        count -= 1
    return count


def absorbing(chain: Sequence[Segment], kept: int, size: int) -> int:
    """How many segments stay when the next one, of `size` bytes, takes in its neighbours below.

    It takes in those that are no larger than what it has by then, as a binary counter carries: each byte is written
    about log2(number of commits) times, and as many segments stay.
    """
    size += _HEADER
    while kept and chain[kept - 1].bytes <= size and chain[kept - 1].bytes + size <= LARGEST:
        kept -= 1
        size += chain[kept].bytes
    return kept


def needed(chain: Sequence[Segment], marks: Sequence[Heights]) -> tuple[Segment, ...]:
    """The segments that a commit stands on."""
    top = tuple(max(heights) for heights in zip_longest(*marks, fillvalue=0))
    return tuple(s for s in chain if not at_most(top, s.start))


def is_above(heights: Heights, floor: Heights) -> bool:
    """Whether any stack is higher than the floor."""
    return not at_most(heights, floor)
