"""Formulas of ops, traced once a step into a short list of instructions on one element.

A pass over memory is compiled from these (`native`), or run on tensors (`rowwise`); both give the bits of the
formulas themselves. Numbers in a formula become parameters of the pass, so that a schedule compiles nothing anew.

Instructions, each a tuple; what begins with "%" is a float64 made by the instruction of that number, "P" a parameter:

    ("gradient",)                          this step's gradient
    ("value", lattice)                     the lattice's integer as it is now, rounded to float64
    ("mul" | "add" | "sub" | "div", a, b)  ("sqrt" | "max0", a)
    ("exchange", lattice, n, d)            x = (x n + u) // d, see `ops`
    ("peak", a, peak)                      |a| is reported as peak number `peak`
    ("shear", lattice, a, sign, peak)      x += sign * round(a); |round(a)| is reported as peak number `peak`
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

from .course import Course, course
from .world import Part

Instruction = tuple[Any, ...]


class Untraceable(Exception):
    """A formula that does more than arithmetic on one element."""


class Trace:
    """Instructions in the making.

    Attributes:
        instructions: see above.
        parameters: float64 numbers that "P" refers to.
        peaks: how many magnitudes are reported.
        changed: lattices that were changed so far, in order.
        read: lattices that were read.
        peak_of: the number of an op's peak, by the op's place in the pass.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.parameters: list[float] = []
        self.peaks = 0
        self.changed: list[str] = []
        self.read: list[str] = []
        self.peak_of: dict[int, int] = {}
        self._known: dict[Instruction, str] = {}

    @functools.cached_property
    def course(self) -> Course:
        """What the instructions do to lattices; asked when they are complete."""
        return course(tuple(self.instructions))

    def emit(self, *instruction: Any) -> str:
        """Add an instruction, or find it: its name."""
        if instruction not in self._known:
            self.instructions.append(instruction)
            self._known[instruction] = f"%{len(self.instructions) - 1}"
        return self._known[instruction]

    def parameter(self, value: float) -> str:
        """A new parameter."""
        self.parameters.append(float(value))
        return f"P{len(self.parameters) - 1}"

    def value(self, lattice: str) -> str:
        """The lattice as it is now."""
        if lattice not in self.read:
            self.read.append(lattice)
        return self.emit("value", lattice)

    def exchange(self, lattice: str, n: int, d: int) -> None:
        """Multiply a lattice by n/d."""
        self.instructions.append(("exchange", lattice, n, d))
        self._change(lattice)

    def exchanges(self, lattice: str, pairs: Sequence[tuple[int, int]], forward: bool) -> None:
        """Multiply by a product of fractions, or divide by it."""
        for n, d in pairs if forward else [(d, n) for n, d in reversed(pairs)]:
            self.exchange(lattice, n, d)

    def shear(self, lattice: str, units: str, sign: int) -> None:
        """Add to a lattice."""
        self.instructions.append(("shear", lattice, units, sign, self.peaks))
        self.peaks += 1
        self._change(lattice)

    def peak(self, name: str) -> None:
        """Report the largest magnitude."""
        self.instructions.append(("peak", name, self.peaks))
        self.peaks += 1

    def _change(self, lattice: str) -> None:
        self._known.pop(("value", lattice), None)
        if lattice not in self.changed:
            self.changed.append(lattice)


class Value:
    """A float64 tensor in a formula: an instruction's result times `scale`.

    The factor waits until it must be applied: powers of two are exact, so that they join the factor beside them.
    """

    def __init__(self, trace: Trace, name: str, scale: float = 1.0):
        self.trace, self.name, self.scale = trace, name, scale

    def applied(self) -> str:
        """The name of the product with `scale`."""
        if self.scale == 1.0:
            return self.name
        return self.trace.emit("mul", self.name, self.trace.parameter(self.scale))

    def _exact(self) -> "Value":
        return self if _power_of_two(self.scale) else Value(self.trace, self.applied())

    def _new(self, op: str, *names: str, scale: float = 1.0) -> "Value":
        return Value(self.trace, self.trace.emit(op, *names), scale)

    def _number(self, other: Any) -> float:
        if isinstance(other, (int, float)) and not isinstance(other, bool):
            return float(other)
        raise Untraceable(type(other).__name__)

    def mul(self, other: Any) -> "Value":
        """self * other."""
        if isinstance(other, Value):
            a, b = self._exact(), other._exact()
            return self._new("mul", a.name, b.name, scale=a.scale * b.scale)
        c = self._number(other)
        if _power_of_two(c) or _power_of_two(self.scale):
            return Value(self.trace, self.name, self.scale * c)
        return Value(self.trace, self.applied(), c)

    def div(self, other: Any) -> "Value":
        """self / other."""
        if isinstance(other, Value):
            a, b = self._exact(), other._exact()
            return self._new("div", a.name, b.name, scale=a.scale / b.scale)
        a = self._exact()
        return self._new("div", a.name, self.trace.parameter(self._number(other)), scale=a.scale)

    def _sum(self, op: str, other: Any, alpha: float) -> "Value":
        if not isinstance(other, Value):
            return self._new(op, self.applied(), self.trace.parameter(self._number(other) * alpha))
        b = other.mul(alpha)
        if self.scale == b.scale and _power_of_two(self.scale):
            return self._new(op, self.name, b.name, scale=self.scale)
        return self._new(op, self.applied(), b.applied())

    def add(self, other: Any, *, alpha: float = 1.0) -> "Value":
        """self + alpha * other."""
        return self._sum("add", other, alpha)

    def sub(self, other: Any, *, alpha: float = 1.0) -> "Value":
        """self - alpha * other."""
        return self._sum("sub", other, alpha)

    def sqrt(self) -> "Value":
        """Square root."""
        return self._new("sqrt", self.applied())

    def square(self) -> "Value":
        """self * self."""
        return self.mul(self)

    def neg(self) -> "Value":
        """-self."""
        return self.mul(-1.0)

    def clamp_min(self, low: float) -> "Value":
        """The larger of self and 0."""
        if low != 0.0:
            raise Untraceable("clamp_min")
        a = self if _power_of_two(self.scale) and self.scale > 0 else Value(self.trace, self.applied())
        return self._new("max0", a.name, scale=a.scale)

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(name)

    def __bool__(self) -> bool:
        raise Untraceable("a condition on values")

    def __eq__(self, other: object) -> bool:
        raise Untraceable("==")

    __hash__ = None

    def _become(self, other: "Value") -> "Value":
        self.name, self.scale = other.name, other.scale
        return self

    def mul_(self, other: Any) -> "Value":
        """`mul` in place."""
        return self._become(self.mul(other))

    def div_(self, other: Any) -> "Value":
        """`div` in place."""
        return self._become(self.div(other))

    def add_(self, other: Any, *, alpha: float = 1.0) -> "Value":
        """`add` in place."""
        return self._become(self.add(other, alpha=alpha))

    def sqrt_(self) -> "Value":
        """`sqrt` in place."""
        return self._become(self.sqrt())

    __mul__ = __rmul__ = mul
    __add__ = __radd__ = add
    __sub__, __truediv__, __neg__ = sub, div, neg


def _power_of_two(x: float) -> bool:
    return math.isfinite(x) and abs(math.frexp(x)[0]) == 0.5


class TracedPart:
    """What a formula is given in place of a `Part`; global scalars are the real ones."""

    def __init__(self, part: Part, trace: Trace):
        self._part, self._trace = part, trace

    def __getitem__(self, setting: str) -> Any:
        return self._part[setting]

    def __getattr__(self, name: str) -> Any:
        if name in ("settings", "count", "size", "start", "stop", "world", "square"):
            return getattr(self._part, name)
        raise Untraceable(name)

    def exponent(self, name: str) -> int:
        """Of a lattice's resolution."""
        return self._part.block.lattices[name].exponent

    @property
    def gradient(self) -> Value:
        """This step's."""
        return Value(self._trace, self._trace.emit("gradient"))

    def value(self, name: str) -> Value:
        """The lattice's real value."""
        return Value(self._trace, self._trace.value(name), 2.0 ** -self.exponent(name))
