"""Random numbers keyed by (seed, stream, step): drawn again at will, in either direction.

Bits come from Philox (Salmon et al. 2011, numpy's implementation), keyed through BLAKE2b.
"""

import hashlib
import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A 128-bit key from any integers (negative too) and strings; order and types matter."""
    text = "\0".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A fresh numpy generator; the same parts always give the same numbers."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def seed_all(*parts: int | str) -> None:
    """Seed torch (the CPU, and devices in use), numpy and `random` from a key."""
    k = key(*parts)
    # Not torch.manual_seed: where CUDA is not initialised it stores a stack trace at every call (0.5 ms, and a leak).
    seed = k & ((1 << 63) - 1)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(k >> 96)
    python_random.seed(k)


@contextmanager
def isolated() -> Iterator[None]:
    """Put the state of torch's, numpy's and Python's global generators back on leaving."""
    cpu, cuda = torch.get_rng_state(), None
    if torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all()
    numpy_state, python_state = np.random.get_state(), python_random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy_state)
        python_random.setstate(python_state)
