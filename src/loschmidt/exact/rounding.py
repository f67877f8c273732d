"""Functions of floats whose bits do not depend on the machine, the device or the number of threads."""

import numpy as np
import torch

from .lattice import ROW


def root(x: torch.Tensor) -> torch.Tensor:
    """Square root, rounded as IEEE 754 asks. (torch's on a CPU is one unit in the last place off in some cases.)"""
    if x.device.type != "cpu":
        return x.sqrt()
    if x.dtype is torch.float32:
        return x.double().sqrt_().float()  # two roundings are harmless: 53 bits are more than twice 24, and two
    return torch.from_numpy(np.sqrt(x.contiguous().numpy()))


def by_rows(x: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """Sum of each row of a flat tensor, float64, by folding halves onto each other: always in the same order."""
    padded = torch.zeros(len(lengths), ROW, dtype=torch.float64, device=x.device)
    inside = torch.arange(ROW, device=x.device) < torch.from_numpy(lengths).to(x.device).view(-1, 1)
    padded[inside] = x.to(torch.float64)
    while padded.shape[1] > 1:
        half = padded.shape[1] // 2
        padded = padded[:, :half] + padded[:, half:]
    return padded[:, 0]
