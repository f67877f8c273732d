"""Bit-exact arithmetic: lattices, the four ops, tape, journal, counter-based random numbers, digests."""

from .digest import checksum as checksum
from .digest import digest as digest
from .digest import sum_of as sum_of
from .digest import sum_of_squares as sum_of_squares
from .journal import Journal as Journal
from .lattice import Lattice as Lattice
from .lattice import Rows as Rows
from .lattice import exponent_of as exponent_of
from .lattice import exponents_for as exponents_for
from .lattice import to_lattice as to_lattice
from .passes import look as look
from .passes import lost_share as lost_share
from .passes import run as run
from .passes import run_back as run_back
from .passes import traced_sum as traced_sum
from .program import Contract as Contract
from .program import Op as Op
from .program import Rescale as Rescale
from .program import Rotate as Rotate
from .program import Shear as Shear
from .tape import Stack as Stack
from .tape import Tape as Tape
from .world import Block as Block
from .world import Part as Part
from .world import World as World

BITS = 2
"""Version of the bits. The same program, settings, seed and gradients give the same integers and the same tape in all
releases with the same number here; it is raised by hand when they are meant to change (tests/golden.json pins them)."""
