"""Measures of what a run does: for now, how floats fail to go back."""

from .naive import NaiveRun as NaiveRun
