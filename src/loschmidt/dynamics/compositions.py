"""Palindromic compositions of kicks and drifts, and time reversal of a step.

A step of a separable Hamiltonian U(q) + K(p) is a sequence of exact flows of U (kicks) and of K (drifts), with
coefficients that add up to 1 each. Kick-then-drift has order 1. The others here are palindromes: compositions, with
weights w, of drift(w/2) kick(w) drift(w/2), which has order 2. They evaluate the gradient inside the step, once for
each weight, and so need a closure.

Mirrored, a step is done in reverse order. With momenta flipped this goes back in time; on a palindrome it changes
nothing, and of kick-then-drift it makes drift-then-kick.

Sources: Verlet 1967 (order 2); Forest and Ruth 1990, Yoshida 1990 (order 4, three gradients); Suzuki 1990 (order 4,
five); Yoshida 1990, solution A (order 6, seven); Kahan and Li 1997, s9odr6a (order 6, nine).
"""

from dataclasses import dataclass
from itertools import pairwise

Step = tuple[tuple[str, float], ...]
"""Kicks and drifts in order, each with its share of lr."""


def _palindrome(*half: float) -> tuple[float, ...]:
    """Weights w1 ... wk, what is left to 1, wk ... w1."""
    return (*half, 1 - 2 * sum(half), *reversed(half))


@dataclass(frozen=True)
class Composition:
    """How a step is put together.

    Attributes:
        order: of the error of a trajectory: dt**order over a fixed time.
        weights: of the leapfrogs that it is made of; none: kick, then drift.
        source: where it is from.
    """

    order: int
    weights: tuple[float, ...]
    source: str

    @property
    def gradients(self) -> int:
        """How many a step takes."""
        return max(1, len(self.weights))

    def step(self, mirrored: bool = False) -> Step:
        """Its kicks and drifts."""
        if not self.weights:
            plain = (("kick", 1.0), ("drift", 1.0))
            return plain[::-1] if mirrored else plain
        w = (0.0, *self.weights, 0.0)
        drifts = [(a + b) / 2 for a, b in pairwise(w)]
        between = [x for k, d in zip(self.weights, drifts[1:], strict=True) for x in (("kick", k), ("drift", d))]
        return (("drift", drifts[0]), *between)


_CUBE, _FIFTH = 2 ** (1 / 3), 4 ** (1 / 3)

VERLET: Step = (("kick", 0.5), ("drift", 1.0), ("kick", 0.5))
"""Velocity Verlet, of order 2: momenta and parameters are known at the same time before and after (see lr="auto")."""

COMPOSITIONS = {
    "euler": Composition(1, (), "symplectic Euler: kick, then drift"),
    "leapfrog": Composition(2, (1.0,), "Verlet 1967, position form"),
    "forest-ruth": Composition(4, _palindrome(1 / (2 - _CUBE)), "Forest and Ruth 1990; Yoshida 1990"),
    "suzuki": Composition(4, _palindrome(1 / (4 - _FIFTH), 1 / (4 - _FIFTH)), "Suzuki 1990"),
    "yoshida": Composition(
        6, _palindrome(0.784513610477560, 0.235573213359357, -1.17767998417887), "Yoshida 1990, solution A"
    ),
    "kahan-li": Composition(
        6,
        _palindrome(0.39216144400731413928, 0.33259913678935943860, -0.70624617255763935981, 0.082213596293550800230),
        "Kahan and Li 1997, s9odr6a",
    ),
}
"""By name."""
