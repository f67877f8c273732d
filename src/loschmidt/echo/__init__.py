"""The echo: train, turn round, come back, compare bits; and what a perturbation does to the way back."""

from .plan import LegPlan as LegPlan
from .plan import default_plan as default_plan
from .run import run_echo as run_echo
