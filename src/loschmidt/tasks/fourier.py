"""Fourier components of what a network does with numbers modulo p: of its weights, and of its table of logits.

A network that has learned to add turns angles: its logits are a sum of a few waves cos(w_k (a + b - c)). One that
knows its examples by heart has no frequency of its own. Symbols (p odd):

Z        logits (p * p, p): row a p + b, column c the answer; always the whole table
w_k      2 pi k / p; k = 1 ... (p - 1) / 2 are the frequencies
waves    cos(w_k (a + b)) and sin(w_k (a + b)), functions of a pair: two for each frequency
alpha_k  Z is about sum_k alpha_k cos(w_k (a + b - c))
keys     frequencies whose waves explain a share of Z above a threshold

All arithmetic is in float64. What is added to all answers of a pair alike, which softmax does not see, moves no share
and no alpha. Source: Nanda et al., arXiv 2301.05217, sections 4 and 5, and the code released with it.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import InvalidSetting, NonFinite


def basis(p: int, device: torch.device | None = None) -> torch.Tensor:
    """The real Fourier basis of functions of a number modulo p.

    Returns:
        (p, p) float64, rows orthonormal: constant, cos w_1, sin w_1, cos w_2, ...; columns are numbers.

    Raises:
        InvalidSetting: p is even or below 3.
    """
    if p < 3 or p % 2 == 0:
        raise InvalidSetting(f"p: {p}; at an even p, or below 3, waves do not come in pairs.", "use an odd p.")
    k = torch.arange(1, (p + 1) // 2, device=device)
    turns = k[:, None] * torch.arange(p, device=device) % p  # whole numbers: large angles would lose digits
    angles = turns.double() * (2 * math.pi / p)
    waves = torch.stack([angles.cos(), angles.sin()], 1).view(p - 1, p) * math.sqrt(2 / p)
    return torch.cat([torch.full((1, p), p**-0.5, dtype=torch.float64, device=device), waves])


def spectrum(weights: torch.Tensor) -> torch.Tensor:
    """Power at each frequency of weights that belong to numbers: |cos_k part|^2 + |sin_k part|^2.

    Guarantees: the same when numbers are renamed a -> a + 1. With the power of the constant part, |sum over
    numbers|^2 / p, it adds up to the squared norm of the weights.

    Args:
        weights: (p, n): embeddings (without that of `=`), an unembedding, the map from neurons to logits.

    Returns:
        ((p - 1) / 2,) float64, at least 0.
    """
    w = weights.detach().double().reshape(len(weights), -1)
    return (basis(len(w), w.device)[1:] @ w).square().sum(1).view(-1, 2).sum(1)


def gini(sizes: torch.Tensor) -> float:
    """How unequal sizes are: sum_i (2 i - n - 1) x_i / (n sum x), x ascending.

    0 where all are equal; 1 - m / n where m are equal and the others 0, so at most 1 - 1 / n. The paper takes it of
    amplitudes (section 5.1), that is of `spectrum(weights).sqrt()`; of cos and sin apart, where here they are one.

    Args:
        sizes: (n,), at least 0. Where all are 0 the answer is 0.
    """
    x = sizes.detach().double().sort().values
    n, total = len(x), float(x.sum())
    ranks = torch.arange(1 - n, n, 2, dtype=torch.float64, device=x.device)
    return float(ranks @ x) / (n * total) if total > 0 else 0.0


@torch.no_grad()
def whole_table(model: nn.Module, p: int) -> torch.Tensor:
    """Logits (p * p, p) of all pairs, in float64, in the order of the table; moves no gradient and no mode."""
    device = next((x.device for x in model.parameters()), None)
    numbers = torch.arange(p, device=device)
    return model(torch.cartesian_prod(numbers, numbers)).double()


def mask(pairs: torch.Tensor, p: int) -> torch.Tensor:
    """Which rows of the table these pairs (n, 2) are: (p * p,) bool."""
    rows = torch.arange(p * p, device=pairs.device)
    return torch.isin(rows, pairs[:, 0] * p + pairs[:, 1])


def components(logits: torch.Tensor) -> torch.Tensor:
    """All Fourier components of a table: over a, over b, and over the answer.

    Returns:
        (p, p, p) float64, each axis in the order of `basis`. Their squares add up to those of the logits.
    """
    z, p = checked_table(logits)
    f, z = basis(p, z.device), z.view(p, p, p)
    for _ in range(3):  # takes the first axis away and puts its transform last
        z = torch.tensordot(z, f, dims=([0], [1]))
    return z


class BySum:
    """A table of logits as functions of a + b see it, from all pairs or from some.

    Args:
        logits: (p * p, p).
        pairs: (p * p,) bool, those to look at; None: all.

    Attributes:
        p: the modulus.
        n: (p,) how many pairs have each sum.
        logits: (p, p) float64, logits of the pairs with each sum, added up.
        power: squares of logits, each pair centred, added up.

    Raises:
        InvalidSetting: shapes that are no table, an even p, no pair at all.
        NonFinite: logits that are NaN or infinite.
    """

    def __init__(self, logits: torch.Tensor, pairs: torch.Tensor | None = None):
        z, self.p = checked_table(logits)
        self._basis = basis(self.p, z.device)
        m = torch.arange(self.p, device=z.device)
        rows = m * self.p + (m[:, None] - m) % self.p  # (sum, a) -> row of the table
        weights = (
            torch.ones_like(rows, dtype=torch.float64) if pairs is None else checked_pairs(pairs, z)[rows].double()
        )
        self.n = weights.sum(1)
        self.logits = torch.bmm(weights[:, None], z[rows]).squeeze(1)
        centred = z - z.mean(1, keepdim=True)
        self.power = float((weights * centred.square().sum(1)[rows]).sum())

    def explained(self) -> torch.Tensor:
        """The share of the logits that the two waves of each frequency explain, each frequency by itself.

        How answers read the waves is left free, so a rule that is read out wrongly (relabelled answers) is seen, too.
        Logits are first centred for each pair and each answer.

        Returns:
            ((p - 1) / 2,) float64 in [0, 1]; 0 where all pairs have the same logits. On the whole table shares add up
            to at most 1, and to 1 where logits depend on a + b alone. On n pairs noise has about 2 / n each, and
            one frequency shows in another's share by about as much.
        """
        z, count = self.logits - self.logits.mean(1, keepdim=True), self.n.sum()
        mean = z.sum(0) / count
        variance = self.power - float(count * mean.square().sum())
        if variance <= 1e-12 * self.power:  # rounding of equal rows
            return torch.zeros((self.p - 1) // 2, dtype=torch.float64, device=z.device)
        waves = self._basis[1:]
        waves = waves - (waves @ self.n / count)[:, None]
        overlap = (waves @ z).view(-1, 2, self.p)
        waves = waves.view(-1, 2, self.p)
        inverse = torch.linalg.pinv((waves * self.n) @ waves.mT, hermitian=True)
        return ((inverse @ overlap * overlap).sum((1, 2)) / variance).clamp(0, 1)

    def threshold(self) -> float:
        """The share from which on a frequency is a key one, unless another is given.

        1 / (p - 1): half of what each frequency has where all have the same, so that a network which uses all of them
        has all of them as keys. But at least 5 standard deviations above the mean share of noise on that many pairs,
        which matters for a few dozen, and at most 1 / 2. A rule of this project: the paper chose by eye, and its code
        takes each frequency that is the best of any neuron.
        """
        degrees = max(float(self.n.sum()) - 1, 2.0)  # the share of Gaussian noise has a beta distribution
        mean = 2 / degrees
        deviation = math.sqrt(mean * (1 - mean) / ((self.p - 1) * degrees / 2 + 1))
        return min(0.5, max(1 / (self.p - 1), mean + 5 * deviation))

    def keys(self, threshold: float | None = None) -> tuple[int, ...]:
        """Frequencies that explain more than a threshold, a share in (0, 1), ascending; None: `threshold()`."""
        threshold = self.threshold() if threshold is None else threshold
        if not 0 < threshold < 1:
            raise InvalidSetting(f"threshold: {threshold}; it is a share of the logits.", "give one between 0 and 1.")
        return tuple((1 + (self.explained() > threshold).nonzero().flatten()).tolist())

    def coefficients(self) -> torch.Tensor:
        """alpha_k: the least-squares fit of sum_k alpha_k cos(w_k (a + b - c)) to the logits.

        Frequencies are orthogonal over the answers of each pair, so this is exact on any pairs. A lookup table has
        2 L / p at every frequency, where the right logit stands out by L. Source: arXiv 2301.05217, section 4.

        Returns:
            ((p - 1) / 2,) float64, in nats, of either sign: below 0 a frequency votes against the right answer.
        """
        m = torch.arange(self.p, device=self.n.device)
        by_distance = self.logits.gather(1, (m[:, None] - m) % self.p).sum(0)  # entry d: of the answer a + b - d
        cosines = self._basis[1::2] * math.sqrt(self.p / 2)
        return cosines @ by_distance * (2 / self.p / float(self.n.sum()))

    def trig_share(self) -> float:
        """The share of the logits' power, each pair centred, that the fit of `coefficients` explains, 0 to 1.

        1 for logits that depend on |a + b - c| modulo p alone. A bias of answers counts as unexplained.
        """
        fitted = float(self.coefficients().square().sum() * self.n.sum()) * self.p / 2
        return min(1.0, fitted / self.power) if self.power > 0 else 0.0

    def fit(self, keys: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The least-squares fit of a constant and the waves at some frequencies; where several fit, the smallest.

        On the whole table waves are orthogonal. On n pairs those left out show in those fitted, by about n^-1/2 of
        their size.

        Args:
            keys: frequencies, 1 to (p - 1) / 2.

        Returns:
            The constant (p,), one for each answer, and the waves (p, p): for each sum, each answer.

        Raises:
            InvalidSetting: a key that is no frequency.
        """
        top = (self.p - 1) // 2
        if wrong := [k for k in keys if k not in range(1, top + 1)]:
            raise InvalidSetting(f"keys: {wrong} are no frequencies modulo {self.p}.", f"give numbers from 1 to {top}.")
        rows = [0, *(row for k in sorted(set(keys)) for row in (2 * k - 1, 2 * k))]
        functions, root = self._basis[rows], self.n.sqrt()
        means = self.logits / root.clamp_min(1)[:, None]  # sums that no pair has are 0 on both sides
        amplitudes = torch.linalg.pinv((functions * root).mT) @ means
        return functions[0, 0] * amplitudes[0], functions[1:].mT @ amplitudes[1:]


def checked_table(logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Logits in float64, and p; refuses what is no table, or not finite."""
    p = logits.shape[-1]
    if logits.shape != (p * p, p):
        raise InvalidSetting(
            f"logits: shape {tuple(logits.shape)}, not (p * p, p).", "give those of the whole table, by `whole_table`."
        )
    z = logits.detach().double()
    if not math.isfinite(z.sum()):
        raise NonFinite("logits: some are NaN or infinite.", "look at the run before it blew up.")
    return z, p


def checked_pairs(pairs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A mask of rows, on the device of the logits; refuses what is none, or empty."""
    if pairs.shape != logits.shape[:1] or pairs.dtype != torch.bool:
        raise InvalidSetting(
            f"pairs: {pairs.dtype}, shape {tuple(pairs.shape)}, not bool of ({len(logits)},).", "make it by `mask`."
        )
    if not pairs.any():
        raise InvalidSetting("pairs: there is none.", "give at least one.")
    return pairs.to(logits.device)
