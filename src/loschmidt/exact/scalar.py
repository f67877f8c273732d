"""Functions of one number, for formulas that are also differentiated: of a float, or of what stands for one.

A data-dependent factor that is computed with these (and not with `math`) has a tangent map, see `physics.tangent`.
"""

import math
from typing import Any


def log(x: Any) -> Any:
    """Natural logarithm."""
    return math.log(x) if isinstance(x, float | int) else x.log()


def exp(x: Any) -> Any:
    """Exponential."""
    return math.exp(x) if isinstance(x, float | int) else x.exp()


def sqrt(x: Any) -> Any:
    """Square root."""
    return math.sqrt(x) if isinstance(x, float | int) else x.sqrt()


def value(x: Any) -> float:
    """The number itself, for decisions: nothing that follows from it has a derivative."""
    return float(x) if isinstance(x, float | int) else x.value()


def isfinite(x: Any) -> bool:
    """Whether it is neither infinite nor NaN."""
    return math.isfinite(value(x))
