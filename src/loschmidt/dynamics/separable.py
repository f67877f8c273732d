"""The separable Hamiltonian H = eta log D + log(s + |p|^2) (De Luca, Gatti and Silverstein, arXiv 2306.00352).

dq/dt = 2 p / (s + |p|^2)      dp/dt = -eta grad F / D

Kick and drift are shears of p by a function of q alone and of q by a function of p alone: symplectic, and free of bits.
With eta = 1 and s = 1 a step of time is at most 1 long in space (2 |p| <= 1 + |p|^2).

On the shell |p|^2 = exp(E) D^-eta - s: the paths are those of a Newtonian particle of energy -s/2 in the potential
-exp(E) D^-eta / 2, run through at another pace. D = |q| in the plane with eta = 1 gives Kepler's ellipses, uniformly in
the eccentric anomaly, with period pi exp(E) / sqrt(s) (tested).
"""

import math

from ..exact import scalar

_LARGEST_LOG = 700.0  # of a float64


def energy(D: float, p2: float, eta: float, s: float) -> float:
    """H in nats."""
    return eta * scalar.log(D) + scalar.log(s + p2)


def shell(E: float, D: float, eta: float, s: float) -> float:
    """|p|^2 at which H = E: negative where D is too large for E, infinite where no float64 holds it."""
    log = E - eta * scalar.log(D)
    return scalar.exp(log) - s if log <= _LARGEST_LOG else math.inf


def kick(dt: float, D: float, eta: float) -> float:
    """Coefficient of grad F in p."""
    return -dt * eta / D  # exact: in this order


def drift(dt: float, p2: float, s: float) -> float:
    """Coefficient of p in q."""
    return 2 * dt / (s + p2)  # exact: in this order


def speed(p2: float, s: float) -> float:
    """|dq/dt|. On the shell it falls with D once |p|^2 > s: as 2 exp(-E/2) D^(eta/2)."""
    return 2 * scalar.sqrt(p2) / (s + p2)


def log_measure(D: float, n: int, E: float, eta: float, s: float) -> float:
    """(exp(E) D^-eta - s)^((n - 2)/2) exp(E) D^-eta, which is D^(-eta n/2) where s = 0. -inf beyond the shell."""
    p2 = shell(E, D, eta, s)
    return (n / 2 - 1) * scalar.log(p2) + E - eta * scalar.log(D) if p2 > 0 else -math.inf
