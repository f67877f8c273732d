"""Measures of what a run does: how floats fail to go back."""

from .naive import NaiveRun as NaiveRun
