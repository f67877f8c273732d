"""Bit-exact arithmetic: lattices, the four ops, tape, journal, counter-based random numbers, digests."""

from .digest import checksum as checksum
from .digest import digest as digest
from .digest import sum_of_squares as sum_of_squares
from .fractions import factors as factors
from .journal import Journal as Journal
from .lattice import Lattice as Lattice
from .lattice import exponent_of as exponent_of
from .lattice import to_lattice as to_lattice
from .program import Contract as Contract
from .program import Op as Op
from .program import Rescale as Rescale
from .program import Rotate as Rotate
from .program import Shear as Shear
from .program import lost_share as lost_share
from .program import run as run
from .program import run_back as run_back
from .tape import Lanes as Lanes
from .tape import Tape as Tape
from .world import Block as Block
from .world import Part as Part
from .world import World as World
