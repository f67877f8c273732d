"""The report: one page with all verdicts and what they rest on, and the pictures of claims in one house style."""

from .build import Made, make
from .interactive import figure
from .png import draw

__all__ = ["Made", "draw", "figure", "make"]
