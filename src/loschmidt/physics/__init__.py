"""Measures of what a run does: how floats fail to go back; wells whose motion is known exactly."""

from . import wells as wells
from .naive import NaiveRun as NaiveRun
