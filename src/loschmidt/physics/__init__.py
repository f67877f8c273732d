"""Measures of what a run does: how perturbations of it grow, and how floats fail to go back."""

from .naive import NaiveRun as NaiveRun
from .tangent import Lyapunov as Lyapunov
from .tangent import Tangent as Tangent
from .tangent import lyapunov as lyapunov
from .tangent import tangent as tangent
