"""The Born-Infeld Hamiltonian H = sqrt(D (D + |p|^2)) (De Luca and Silverstein, arXiv 2201.11137).

dq/dt = (D / E) p      dp/dt = -(D/E + E/D) grad F / 2

with E = H of the start for good, as published: on the shell these are Hamilton's equations. The speed has a limit that
falls with the potential, |dq/dt| <= sqrt(D): a relativistic particle that cannot run past a minimum. The drift's
coefficient depends on q, so that kick and drift together are invertible (D is noted) but not symplectic.
"""

import math

from ..exact import scalar


def energy(D: float, p2: float) -> float:
    """H, in units of the loss."""
    return scalar.sqrt(D * (D + p2))


def shell(E: float, D: float) -> float:
    """|p|^2 at which H = E: negative where D is above E, infinite where no float64 holds it."""
    ratio = E / D
    return D * (ratio * ratio - 1.0)


def kick(dt: float, D: float, E: float) -> float:
    """Coefficient of grad F in p."""
    return -0.5 * dt * (D / E + E / D)


def drift(dt: float, D: float, E: float) -> float:
    """Coefficient of p in q."""
    return dt * (D / E)


def speed(D: float, E: float) -> float:
    """|dq/dt| on the shell: sqrt(D (1 - (D/E)^2)), below its limit sqrt(D)."""
    ratio = D / E
    return scalar.sqrt(D * max(0.0, 1.0 - ratio * ratio))


def log_measure(D: float, n: int, E: float) -> float:
    """(E^2/D - D)^((n - 2)/2) / D, which is D^(-n/2) where D is far below E. -inf beyond the shell."""
    p2 = shell(E, D)
    return (n / 2 - 1) * scalar.log(p2) - scalar.log(D) if p2 > 0 else -math.inf
