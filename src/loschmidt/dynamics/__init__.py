"""Hamiltonians as plain functions of numbers: energy, energy shell, coefficients of kick and drift, speed, measure.

D   potential F - F0, above 0: loss, decay inside H, and an offset below every loss
p2  |p|^2 over all parameters
E   energy
dt  step of time (`lr`)
n   how many parameters move

Each module has the same functions as far as they make sense there. `log_measure` is the logarithm of the stationary
density of q at energy E, up to a constant: the microcanonical measure delta(E - H) with the momentum integrated out,
which an ergodic run visits.
"""

from . import born_infeld as born_infeld
from . import separable as separable
from . import unit_speed as unit_speed
from .compositions import COMPOSITIONS as COMPOSITIONS
from .compositions import Composition as Composition
