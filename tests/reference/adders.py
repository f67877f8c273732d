"""Tables of logits, and a network, that add modulo p in ways of which everything is known.

The network is the analytic solution of Gromov, arXiv 2301.02679: one hidden layer that squares, a frequency and two
phases for each neuron.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn


class SquareMLP(nn.Module):
    """Neuron j: (cos(w a + s_j) + cos(w b + t_j))^2, read out by cos(w c + s_j + t_j), with w its frequency.

    The square's cross term gives cos(w (a + b - c)) / 2; all else depends on phases, and sums to nothing.

    Args:
        p: the modulus.
        frequencies: those that neurons have.
        grid: phases of each frequency are all pairs from `grid` equal angles; from 3 on, all else cancels exactly.
        random: instead, so many random pairs of phases for each frequency, as in the paper: all else cancels roughly.
        scale: logits are scale * sum_k cos(w_k (a + b - c)).
    """

    def __init__(self, p: int, frequencies: Sequence[int], grid: int = 3, random: int = 0, scale: float = 1.0):
        super().__init__()
        angles = [2 * math.pi * i / grid for i in range(grid)]
        phases = torch.tensor(list(itertools.product(angles, angles)), dtype=torch.float64)
        phases = phases.repeat(len(frequencies), 1, 1)
        if random:
            generator = torch.Generator().manual_seed(0)
            phases = 2 * math.pi * torch.rand(len(frequencies), random, 2, generator=generator, dtype=torch.float64)
        numbers = torch.arange(p, dtype=torch.float64)
        angle = 2 * math.pi / p * torch.tensor(frequencies, dtype=torch.float64)[:, None, None] * numbers
        first, second = phases[..., 0, None], phases[..., 1, None]  # (frequency, neuron, number)
        self.first = nn.Parameter((angle + first).cos().flatten(0, 1).T)  # (number, neuron)
        self.second = nn.Parameter((angle + second).cos().flatten(0, 1).T)
        self.out = nn.Parameter((angle + first + second).cos().flatten(0, 1).T * (2 * scale / phases.shape[1]))

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return (self.first[pairs[:, 0]] + self.second[pairs[:, 1]]).square() @ self.out.T


def sums(p: int) -> torch.Tensor:
    """Answers of the whole table: (p * p,)."""
    return torch.cartesian_prod(torch.arange(p), torch.arange(p)).sum(1) % p


def ideal(p: int, alpha: dict[int, float], shift: int = 0) -> torch.Tensor:
    """sum_k alpha_k cos(w_k (a + b + shift - c)): (p * p, p) float64."""
    distance = (sums(p)[:, None] + shift - torch.arange(p)).double()
    return sum(size * (2 * math.pi * k / p * distance).cos() for k, size in alpha.items())


def lookup(p: int, train: torch.Tensor, height: float, noise: float = 1.0, seed: int = 0) -> torch.Tensor:
    """A table that knows its training pairs by heart and nothing else: noise, and the right logit higher in `train`."""
    z = noise * torch.randn(p * p, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[train, sums(p)[train]] += height
    return z
