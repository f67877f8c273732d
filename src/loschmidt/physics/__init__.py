"""Measures of what a run does: energy, heat and temperature; how perturbations of it grow, and what comes back; how
floats fail to go back; and wells whose motion is known exactly."""

from . import wells as wells
from .echoes import echo as echo
from .gauge import gauge_directions as gauge_directions
from .heating import Heating as Heating
from .heating import measured_heating as measured_heating
from .heating import predicted_heating as predicted_heating
from .monitor import EnergyMonitor as EnergyMonitor
from .monitor import read as read
from .naive import NaiveRun as NaiveRun
from .outcome import Echo as Echo
from .perturb import Exact as Exact
from .perturb import Floats as Floats
from .perturb import Fresh as Fresh
from .perturb import Momenta as Momenta
from .perturb import Nudge as Nudge
from .perturb import Perturbation as Perturbation
from .perturb import Rate as Rate
from .perturb import Sample as Sample
from .perturb import Scaled as Scaled
from .perturb import Unit as Unit
from .stationary import kinetic_temperature as kinetic_temperature
from .stationary import stationarity as stationarity
from .tangent import Lyapunov as Lyapunov
from .tangent import Tangent as Tangent
from .tangent import lyapunov as lyapunov
from .tangent import tangent as tangent
