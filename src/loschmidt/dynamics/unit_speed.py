"""The unit-speed Hamiltonian H = |P| D^(eta n / (2 (n - 1))) (ECD q=1: De Luca, Nachman, Silverstein and Zheng, arXiv
2501.18419; the same equations as microcanonical Langevin dynamics, Robnik et al., arXiv 2212.08549).

The state is not P but a direction p of length about 1, P = |P| p. With k = eta n / (2 (n - 1)) and G = grad F:

dq/dt = p      dp/dt = -(k / D) (G - p (p.G))      d log |P| / dt = -(k / D) p.G

A kick multiplies p by 1 + c p.G and adds -c G, c = dt k / D. What the factors shrink p by, P has grown by: the
direction forgets -log2(1 + c p.G) bits an element, and over a run at small steps (eta/2) log2(D_start / D_end) bits a
parameter.
"""

import math

from ..exact import scalar


def exponent(eta: float, n: int) -> float:
    """k, the power of D in H."""
    return 0.5 * eta * n / (n - 1)


def energy(D: float, log_P: float, eta: float, n: int) -> float:
    """log H in nats, from log |P|."""
    return log_P + exponent(eta, n) * scalar.log(D)


def kick(dt: float, D: float, eta: float, n: int) -> float:
    """Coefficient of G in p: -c."""
    return -dt * exponent(eta, n) / D


def growth(c_p_G: float, length: float) -> float:
    """What the kick multiplies a momentum of this length by, if it is first brought to length 1.

    Below 0 where one kick would turn p round: p is then reversed.
    """
    return (1.0 + c_p_G / length) / length


def speed(length: float) -> float:
    """|dq/dt|: 1 but for what the last kick added."""
    return length


def log_measure(D: float, n: int, eta: float) -> float:
    """D^(-eta n/2)."""
    return -0.5 * eta * n * scalar.log(D)


def bits(start: float, end: float, eta: float) -> float:
    """What going from potential `start` to `end` costs at small steps, in bits a parameter."""
    return 0.5 * eta * math.log2(start / end)
