"""Time: going to any step of a run, excursions, files."""

from .trajectory import Trajectory as Trajectory
