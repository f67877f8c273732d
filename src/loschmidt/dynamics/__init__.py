"""Hamiltonians and integrators, as formulas and tables."""

from .compositions import COMPOSITIONS, Composition

__all__ = ["COMPOSITIONS", "Composition"]
