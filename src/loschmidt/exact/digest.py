"""Digests (hex, for people and files), checksums (64 bits, cheap, each step) and deterministic sums."""

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

_ROW = 4096
_WEIGHTS = torch.from_numpy(
    np.random.Generator(np.random.Philox(key=0x10501)).integers(-(2**63), 2**63 - 1, _ROW, dtype=np.int64) | 1
)
_CHUNK = 64  # rows of a checksum's working buffer: 2 MB


def raw_bytes(x: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, on the host."""
    x = x.detach().contiguous().cpu()
    return memoryview(x.view(-1).view(torch.uint8).numpy()) if x.numel() else memoryview(b"")


def digest(items: Iterable[torch.Tensor | bytes | str | int], size: int = 16) -> str:
    """BLAKE2b of tensors (dtype, shape and bytes), strings, bytes and integers, in order.

    Args:
        items: what to digest.
        size: bytes of the digest; the text is twice as long.
    """
    h = hashlib.blake2b(digest_size=size)
    for item in items:
        if isinstance(item, torch.Tensor):
            h.update(f"{item.dtype}{tuple(item.shape)}".encode())
            h.update(raw_bytes(item))
        else:
            data = item if isinstance(item, bytes) else str(item).encode()
            h.update(b"%d:" % len(data) + data)
    return h.hexdigest()


def checksum(x: torch.Tensor) -> int:
    """Signed 64-bit sum of the words of a flat float64 or int64 tensor, each times an odd weight, mod 2**64.

    Integer sums do not depend on order, so threads and kernels cannot change it. Any single flipped bit
    changes it (odd weights are invertible mod 2**64). Not cryptographic.
    """
    x, total = x.view(torch.int64), 0
    weights = _WEIGHTS if x.device.type == "cpu" else _WEIGHTS.to(x.device)
    rows = x.numel() // _ROW
    for first in range(0, rows, _CHUNK):
        block = x[first * _ROW : min(first + _CHUNK, rows) * _ROW].view(-1, _ROW)
        columns = (block * weights).sum(1)
        total += int((columns * weights[: len(columns)].flip(0)).sum()) * (2 * first + 1)
    tail = x[rows * _ROW :]
    total += int((tail * weights[: tail.numel()]).sum()) * (2 * rows + 1)
    return (total + 2**63) % 2**64 - 2**63


def checksum_of(value: float) -> int:
    """`checksum` of one number."""
    (word,) = struct.unpack("<q", struct.pack("<d", value))
    return (word * int(_WEIGHTS[0]) + 2**63) % 2**64 - 2**63


def sum_of(x: torch.Tensor) -> torch.Tensor:
    """Sum of a flat float64 tensor, as a 0-dimensional tensor on its device.

    # exact: rows of fixed length, each summed by one thread, so the bits do not depend on the thread count.
    """
    rows = x.numel() // _ROW
    if rows < 2:
        return x.sum()
    body = x[: rows * _ROW].view(rows, _ROW).sum(1)
    return sum_of(torch.cat([body, x[rows * _ROW :].sum().view(1)]))


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """Sum of squares of a flat float64 tensor, in the same order."""
    return sum_of(x * x)


def chunk_sums(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """Sums of chunks of a flat float64 tensor, each by folding halves onto each other: always in the same order."""
    if x.numel() % chunk:
        x = torch.nn.functional.pad(x, (0, -x.numel() % chunk))
    small = x.device.type == "cpu" and x.numel() <= 1 << 16
    y: Any = x.view(-1, chunk)
    y = y.numpy() if small else y  # the same additions, in a fifth of the time that torch's calls take
    while y.shape[1] > 1:
        half = y.shape[1] // 2
        y = y[:, :half] + y[:, half:]
    return torch.from_numpy(y[:, 0]) if small else y[:, 0]


def folded(sums: torch.Tensor, chunk: int) -> torch.Tensor:
    """Total of chunk sums, 0-dimensional."""
    while sums.numel() > 1:
        sums = chunk_sums(sums, chunk)
    return sums.reshape(()) if sums.numel() else torch.zeros((), dtype=torch.float64)


def words_sum(gradient: torch.Tensor, start: int) -> torch.Tensor:
    """Sum of a gradient's 64-bit words, each times an odd number that depends on its place: 0-dimensional int64.

    Integer sums do not depend on order; any single flipped bit changes it. Not cryptographic.

    Args:
        gradient: flat.
        start: number of its first element in the flat buffer: the word at element i is multiplied by (2 i + 1) PHI,
            mod 2**64; the last is filled up with zeros.
    """
    each, phi = 8 // gradient.element_size(), 0x9E3779B97F4A7C15 - (1 << 64)
    total, step = torch.zeros((), dtype=torch.int64, device=gradient.device), 1 << 18
    for first in range(0, gradient.numel(), step):
        g = gradient[first : first + step]
        words = torch.nn.functional.pad(g, (0, -g.numel() % each)).clone().view(torch.int64)
        index = torch.arange(len(words), dtype=torch.int64, device=g.device)
        total += (words * ((2 * (start + first + each * index) + 1) * phi)).sum()
    return total
