"""A test bed: potentials of a few coordinates, in float64, with what is known of them exactly.

A well is a loss for any optimizer, with `Point` as the model. Facts of motion are Newton's, for unit mass and
H = |v|^2/2 + F. SGD without friction (momentum=1) is Newton's equation: a step is dt = sqrt(lr) long, and v = p dt.
What a path is under the other Hamiltonians stands in `dynamics`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Facts = dict[str, Callable[..., float]]


@dataclass(frozen=True)
class Well:
    """A potential F of n coordinates.

    Attributes:
        F: position, shape (n,), float64 -> 0-dimensional.
        start: where runs of it begin, as in the literature if there is one.
        lowest: the smallest value of F (-inf: there is none).
        minimum: a position at which F is `lowest`; None if there is none.
        facts: named functions of numbers, each with an exact answer.
    """

    F: Callable[[torch.Tensor], torch.Tensor]
    start: tuple[float, ...]
    lowest: float = 0.0
    minimum: tuple[float, ...] | None = None
    facts: Facts = field(default_factory=dict)

    def point(self, split: bool = False, at: Sequence[float] | None = None) -> "Point":
        """A model at the start, or at another position."""
        return Point(self.start if at is None else at, split)

    def loss(self, model: nn.Module, batch: Any = None) -> torch.Tensor:
        """F at the model's position: the `loss` of a `Trajectory`."""
        return self.F(model())


class Point(nn.Module):
    """A position as parameters, float64: one tensor, or with `split` one for each coordinate."""

    def __init__(self, at: Sequence[float], split: bool = False):
        super().__init__()
        x = torch.tensor(at, dtype=torch.float64)
        self.x = nn.ParameterList(x.split(1) if split else [x])

    def forward(self) -> torch.Tensor:
        """The position, shape (n,)."""
        return torch.cat(list(self.x))


def harmonic(stiffness: float = 1.0, n: int = 1) -> Well:
    """k |x|^2 / 2. Period 2 pi / sqrt(k) at any amplitude."""
    return Well(
        lambda x: 0.5 * stiffness * x.square().sum(),
        (1.0,) * n,
        minimum=(0.0,) * n,
        facts={"period": lambda: 2 * math.pi / math.sqrt(stiffness)},
    )


def quartic(strength: float = 1.0) -> Well:
    """b x^4 / 4. Period Gamma(1/4)^2 / (amplitude sqrt(pi b))."""
    return Well(
        lambda x: 0.25 * strength * x.pow(4).sum(),
        (1.0,),
        minimum=(0.0,),
        facts={"period": lambda amplitude: math.gamma(0.25) ** 2 / (amplitude * math.sqrt(math.pi * strength))},
    )


def kepler(strength: float = 1.0) -> Well:
    """-k / r in the plane. An orbit of energy -k / (2 a) is an ellipse of semi-axis a; period 2 pi sqrt(a^3 / k)."""
    return Well(
        lambda x: -strength / x.norm(),
        (1.0, 0.0),
        lowest=-math.inf,
        facts={
            "axis": lambda energy: -strength / (2 * energy),
            "period": lambda energy: 2 * math.pi * math.sqrt((-strength / (2 * energy)) ** 3 / strength),
            "eccentricity": lambda energy, momentum: math.sqrt(1 + 2 * energy * (momentum / strength) ** 2),
        },
    )


def cone() -> Well:
    """r in the plane, with F0 = 0 and eta = 1: Kepler's ellipses under ECD's Hamiltonian (`dynamics.separable`).

    At energy E the semi-axis is exp(E) / (2 s), a round takes pi exp(E) / sqrt(s), and r = a (1 - e cos u) with an
    eccentric anomaly u that grows uniformly in time.
    """
    return Well(
        lambda x: x.norm(),
        (1.0, 0.0),
        minimum=(0.0, 0.0),
        facts={
            "axis": lambda E, s: math.exp(E) / (2 * s),
            "period": lambda E, s: math.pi * math.exp(E) / math.sqrt(s),
        },
    )


def sombrero(height: float = 1.0, radius: float = 1.0) -> Well:
    """h (r^2 / R^2 - 1)^2 in the plane: a circle of minima, and angular momentum is conserved."""
    return Well(
        lambda x: height * (x.square().sum() / radius**2 - 1) ** 2,
        (0.3 * radius, 0.1 * radius),
        minimum=(radius, 0.0),
        facts={"frequency": lambda: math.sqrt(8 * height) / radius},  # of small radial oscillations
    )


def zakharov(n: int = 10) -> Well:
    """|x|^2 + s^2 + s^4, s = sum i x_i / 2: a long narrow valley; from all ones as in arXiv 2201.11137."""
    weights = 0.5 * torch.arange(1, n + 1, dtype=torch.float64)

    def F(x: torch.Tensor) -> torch.Tensor:
        s = (weights * x).sum()
        return x.square().sum() + s**2 + s**4

    return Well(F, (1.0,) * n, minimum=(0.0,) * n)


def rosenbrock() -> Well:
    """(1 - x)^2 + 100 (y - x^2)^2."""
    return Well(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, (-1.2, 1.0), minimum=(1.0, 1.0))


def ackley(n: int = 2) -> Well:
    """Many local minima around one: from (-4, 3) as in arXiv 2306.00352. At the minimum itself it has a corner."""

    def F(x: torch.Tensor) -> torch.Tensor:
        slope = -20 * torch.exp(-0.2 * x.square().mean().sqrt())
        return slope - torch.exp(torch.cos(2 * math.pi * x).mean()) + 20 + math.e

    return Well(F, (-4.0, 3.0) if n == 2 else (-4.0,) * n, minimum=(0.0,) * n)


WELLS: dict[str, Callable[..., Well]] = {
    "harmonic": harmonic,
    "quartic": quartic,
    "kepler": kepler,
    "cone": cone,
    "sombrero": sombrero,
    "zakharov": zakharov,
    "rosenbrock": rosenbrock,
    "ackley": ackley,
}


def angular_momentum(q: Sequence[float], p: Sequence[float]) -> float:
    """q x p in the plane."""
    return q[0] * p[1] - q[1] * p[0]


def runge_lenz(q: Sequence[float], p: Sequence[float], strength: float = 1.0) -> tuple[float, float]:
    """The vector of length e that points at the pericentre of Kepler's ellipse: p x L / k - q / r."""
    L, r = angular_momentum(q, p), math.hypot(*q)
    return p[1] * L / strength - q[0] / r, -p[0] * L / strength - q[1] / r
