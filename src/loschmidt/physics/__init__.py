"""Measures of what a run does: its energy ledger, heat and temperature; how floats fail to go back."""

from .monitor import EnergyMonitor as EnergyMonitor
from .monitor import read as read
from .naive import NaiveRun as NaiveRun
