"""Formulas of ops, traced into a short list of instructions on one element.

The instructions are run on rows of memory by an interpreter in C (`rows.c`), or on tensors (`eager`), with the same
bits. All arithmetic is in one type of float: float64 where a lattice has 64 bits or parameters are float64, else
float32. What begins with "%" is a register, the result of the instruction of that number; "P" is a number.

    ("gradient",)                              this step's gradient
    ("value", lattice, unit, plus)             (n + plus) u, as it is now
    ("mul" | "add" | "sub" | "div", %a, %b | P)
    ("sqrt" | "max0", %a)
    ("shear", lattice, unit, %a, sign, dithered)   n += sign * round(a / u), after room was made
    ("sum", %a)                                the sum of each row, in float64
    ("given", k)                               a tensor that was made beforehand, of a formula that was not understood

A unit is the number of a table: the logarithms that the tensors' units have at that place (see `units`).
"""

from typing import Any

import torch

from ..world import Part

Instruction = tuple[Any, ...]


class Untraceable(Exception):
    """A formula that does more than arithmetic on one element."""


class Trace:
    """Instructions in the making, for one part.

    Args:
        part: what they are done to.

    Attributes:
        instructions: see above.
        parameters: numbers that "P" refers to.
        tables: a list of logarithms for each unit, one for each tensor of the part.
        logs: the present ones, by lattice.
        changed: lattices that were changed so far, in order.
        shears: the op, by its position in the program, of each shear in order.
        idle: ops, by position, that have nothing to add this time.
        given: tensors made beforehand.
    """

    def __init__(self, part: Part):
        self.part = part
        self.instructions: list[Instruction] = []
        self.parameters: list[float] = []
        self.tables: list[tuple[int, ...]] = []
        self.logs: dict[str, tuple[int, ...]] = {}
        self.changed: list[str] = []
        self.shears: list[int] = []
        self.idle: list[int] = []
        self.given: list[torch.Tensor] = []
        self._known: dict[Instruction, str] = {}
        self._units: dict[tuple[str, tuple[int, ...]], int] = {}

    def emit(self, *instruction: Any) -> str:
        """Add an instruction, or find it: its register."""
        if instruction not in self._known:
            self.instructions.append(instruction)
            self._known[instruction] = f"%{len(self.instructions) - 1}"
        return self._known[instruction]

    def parameter(self, value: float) -> str:
        """A new number."""
        self.parameters.append(float(value))
        return f"P{len(self.parameters) - 1}"

    def logs_of(self, lattice: str) -> tuple[int, ...]:
        """The logarithms that the part's tensors have now."""
        if lattice not in self.logs:
            first, last = self.part.tensors_at
            self.logs[lattice] = tuple(self.part.block.lattices[lattice].logs[first:last])
        return self.logs[lattice]

    def unit(self, lattice: str) -> int:
        """The number of the present table."""
        key = lattice, self.logs_of(lattice)
        if key not in self._units:
            self._units[key] = len(self.tables)
            self.tables.append(key[1])
        return self._units[key]

    def value(self, lattice: str, plus: int) -> str:
        """The lattice as it is now."""
        return self.emit("value", lattice, self.unit(lattice), plus)

    def scale(self, lattice: str, by: int | list[int]) -> None:
        """Add to the logarithms: one number for all tensors, or one for each."""
        logs = self.logs_of(lattice)
        each = [by] * len(logs) if isinstance(by, int) else by
        self.logs[lattice] = tuple(a + b for a, b in zip(logs, each, strict=True))

    def shear(self, lattice: str, register: str, sign: int, dithered: bool, position: int) -> None:
        """Add to a lattice."""
        self.instructions.append(("shear", lattice, self.unit(lattice), register, sign, dithered))
        self.shears.append(position)
        self._known = {k: v for k, v in self._known.items() if k[:2] != ("value", lattice)}
        if lattice not in self.changed:
            self.changed.append(lattice)

    def forget(self, count: int) -> None:
        """Take back all instructions but the first ones, none of them a shear."""
        del self.instructions[count:]
        self._known = {k: v for k, v in self._known.items() if int(v[1:]) < count}

    def sum(self, register: str) -> None:
        """Ask for the sum of each row."""
        self.instructions.append(("sum", register))


class Value:
    """A tensor in a formula: an instruction's result."""

    __slots__ = ("name", "trace")

    def __init__(self, trace: Trace, name: str):
        self.trace, self.name = trace, name

    def _new(self, op: str, *names: str) -> "Value":
        return Value(self.trace, self.trace.emit(op, *names))

    def _operand(self, other: Any) -> str:
        if isinstance(other, Value):
            return other.name
        if isinstance(other, (int, float)) and not isinstance(other, bool):
            return self.trace.parameter(other)
        raise Untraceable(type(other).__name__)

    def mul(self, other: Any) -> "Value":
        """self * other."""
        if not isinstance(other, Value) and other == 1:
            return self
        return self._new("mul", self.name, self._operand(other))

    def div(self, other: Any) -> "Value":
        """self / other."""
        return self._new("div", self.name, self._operand(other))

    def add(self, other: Any, *, alpha: float = 1.0) -> "Value":
        """self + alpha * other."""
        return self._new("add", self.name, self._scaled(other, alpha))

    def sub(self, other: Any, *, alpha: float = 1.0) -> "Value":
        """self - alpha * other."""
        return self._new("sub", self.name, self._scaled(other, alpha))

    def _scaled(self, other: Any, alpha: float) -> str:
        return other.mul(alpha).name if isinstance(other, Value) else self._operand(other * alpha)

    def sqrt(self) -> "Value":
        """Square root."""
        return self._new("sqrt", self.name)

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
        return self._new("max0", self.name)

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(name)

    def __bool__(self) -> bool:
        raise Untraceable("a condition on values")

    def __eq__(self, other: object) -> bool:
        raise Untraceable("==")

    __hash__ = None

    def _become(self, other: "Value") -> "Value":
        self.name = other.name
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

    @property
    def gradient(self) -> Value:
        """This step's."""
        return Value(self._trace, self._trace.emit("gradient"))

    def value(self, name: str, plus: int = 0) -> Value:
        """The lattice's real value; `plus`: of n + plus."""
        return Value(self._trace, self._trace.value(name, plus))
