"""Where batches come from: a pure function of the step, so that a step can be taken back."""

from .schedule import Schedule as Schedule
from .schedule import permutation as permutation
