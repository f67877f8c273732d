"""Measures of what a run does: its energy ledger, heat and temperature; how floats fail to go back."""

from .heating import Heating as Heating
from .heating import measured_heating as measured_heating
from .heating import predicted_heating as predicted_heating
from .monitor import EnergyMonitor as EnergyMonitor
from .monitor import read as read
from .naive import NaiveRun as NaiveRun
from .stationary import kinetic_temperature as kinetic_temperature
from .stationary import stationarity as stationarity
