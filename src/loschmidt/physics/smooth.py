"""A step of a run without rounding, in float64, and its derivative: both from the ops that the run is made of.

Formulas of ops are called as they are, on tensors that autograd follows; a contraction is a multiplication. Ops undone
in the same way give the derivative of undoing. u -> J^T u is linear in u, so that its own derivative gives J v: two
small graphs a step, and one walk through the second for each direction (forward mode takes milliseconds for each).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from ..errors import NotSmooth
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, sum_of_squares
from ..exact.digest import sum_of
from ..optim import ReversibleOptimizer, flat
from ..optim.composed import FLIPPED, as_taken, parts_of, scaled
from .replica import Replica, Slope
from .state import Layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory


class Scalar:
    """A number over all parameters that autograd follows; turning it into a float would lose that, and is refused."""

    def __init__(self, x: torch.Tensor):
        self.x = x

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*map(_bare, args), **{k: _bare(v) for k, v in kwargs.items()})

    def log(self) -> "Scalar":
        """Natural logarithm."""
        return Scalar(self.x.log())

    def exp(self) -> "Scalar":
        """Exponential."""
        return Scalar(self.x.exp())

    def sqrt(self) -> "Scalar":
        """Square root."""
        return Scalar(self.x.sqrt())

    def value(self) -> float:
        """The number, without its derivative: for decisions."""
        return float(self.x.detach())

    def __abs__(self) -> "Scalar":
        return Scalar(self.x.abs())

    def __format__(self, spec: str) -> str:
        return format(self.value(), spec)

    def __float__(self) -> float:
        raise NotSmooth(
            "a formula of this optimizer turns a number that depends on the state into a plain float (math.log?), "
            "where its derivative is lost.",
            "write it with exact.scalar.log, exp and sqrt.",
        )

    __int__ = __index__ = __float__

    def __bool__(self) -> bool:
        return bool(self.x != 0)

    def __neg__(self) -> "Scalar":
        return Scalar(-self.x)

    def __hash__(self) -> int:
        return id(self)


def _bare(x: Any) -> Any:
    return x.x if isinstance(x, Scalar) else x


def _arithmetic(name: str) -> Callable:
    def method(self: Scalar, other: Any) -> Any:
        out = getattr(self.x, name)(_bare(other))
        return Scalar(out) if isinstance(out, torch.Tensor) and out.dim() == 0 else out

    return method


def _comparison(name: str) -> Callable:
    return lambda self, other: bool(getattr(self.x, name)(_bare(other)))


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"):
    setattr(Scalar, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Scalar, f"__{_name}__", _comparison(f"__{_name}__"))


class _Roots(TorchFunctionMode):
    """The root of exactly zero (Adam's v where no gradient ever was) has the derivative 0 here."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.sqrt, torch.Tensor.sqrt, torch.Tensor.sqrt_):
            x = args[0]
            zero = x == 0
            root = (x + zero).pow(0.5) * ~zero
            return x.copy_(root) if func is torch.Tensor.sqrt_ else root
        return func(*args, **(kwargs or {}))


@dataclass
class Leg:
    """Kicks or drifts of a step that was taken, and what it read besides state, gradient and loss."""

    kind: str
    ops: Sequence[Op]
    parts: list[Part]
    scalars: dict[str, float]
    carried: Mapping[str, float]
    has_loss: bool
    before: Mapping[str, float | None] = field(default_factory=dict)


@dataclass
class Taken:
    """A step that was taken: everything of it that is recorded or set, so that it can be repeated without rounding.

    Attributes:
        step: its index.
        legs: its kicks and drifts, in order.
        flips: whether momenta were flipped before it (time turned round).
        loss: the loss that the run saw, at its first kick.
        layout: of the state.
        seed: key of random draws.
        prepare: the optimizer's, which notes what ops read.
        composed: whether it is more than kick, then drift.
        after: what was carried when it was taken.
        before: of that, what it replaced.
        seen: the loss that the copy had at the first kick, once it was evaluated.
    """

    step: int
    legs: list[Leg]
    flips: bool
    loss: float | None
    layout: Layout
    seed: int
    prepare: Callable[[Any], None]
    composed: bool
    after: Mapping[str, float]
    before: Mapping[str, float | None]
    seen: float | None = None

    @classmethod
    def last(cls, traj: "Trajectory", layout: Layout) -> "Taken":
        """The last step of a run that stands just behind it."""
        opt, step = traj.optimizer, traj.step - 1
        entry, settings = opt.journal.peek()[1], opt._settings
        mine = [opt._slots[i] for i in opt._active]
        scalars = {k: v for k, v in entry.get("scalars", {}).items() if k != FLIPPED}
        after, replaced = dict(opt.carried), entry.get("carried", {})
        carried = {k: v for k, v in (after | replaced).items() if k not in scalars and v is not None}
        legs, done = [], entry.get("parts")
        composed = parts_of(settings) if done is None else as_taken(settings, done)
        for i, (kind, share) in enumerate(composed):
            own = done[i].get("scalars", {}) if done is not None else scalars
            world = flat.world_of(
                mine, scaled(settings, share, after.get("lr")), World([], None, step, opt.seed), counting=0
            )
            ops = opt.kicks() if kind == "kick" else opt.drifts()
            legs.append(Leg(kind, ops, world.parts, own, dict(carried), kind == "kick" or done is None))
            carried |= {k: v for k, v in own.items() if k in opt.carries} if done is not None else {}
        loss = None if traj._last_loss is None else float(traj._last_loss)
        flips = FLIPPED in entry.get("scalars", {})
        return cls(step, legs, flips, loss, layout, opt.seed, _silent(opt).prepare, done is not None, after, replaced)

    def forward(self, x: torch.Tensor, v: torch.Tensor, replica: Replica) -> tuple[torch.Tensor, torch.Tensor]:
        """State after the step, and tangents after it, from those before it: (lattices, size), (k, lattices, size)."""
        return self._through(x, v, replica, False)

    def back(self, x: torch.Tensor, v: torch.Tensor, replica: Replica) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse: state before the step, and tangents of undoing it.

        Recorded factors (rescaling) are held, as in undoing.
        """
        return self._through(x, v, replica, True)

    def _through(
        self, x: torch.Tensor, v: torch.Tensor, replica: Replica, back: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sign = torch.ones(x.shape[0], 1, dtype=x.dtype, device=x.device)
        if self.flips:
            sign[self.layout.names.index("p")] = -1.0
        if not back:
            x, v = x * sign, v * sign
        slope: Slope | None = None
        legs = self.legs
        if not self.composed and back:
            legs = [replace(leg, carried=self.after, before=self.before) for leg in legs]
        elif not self.composed:  # in one: drifts may read what the kicks noted (BBI's potential)
            kick, drift = legs
            legs = [replace(kick, ops=[*kick.ops, *drift.ops])]
        for leg in reversed(legs) if back else legs:
            if leg.kind == "kick":
                slope = Slope(replica, self.step, x[0])
                if back or self.seen is None:
                    self.seen = slope.loss
                forces = [(slope.hessian_times(d[0]), float(slope.gradient @ d[0])) for d in v]
                x, v = self._leg(leg, x, v, slope, forces, back)
            else:
                x, v = self._leg(leg, x, v, slope, None, back)
        return (x * sign, v * sign) if back else (x, v)

    def _leg(
        self, leg: Leg, x: torch.Tensor, v: torch.Tensor, slope: Slope | None, forces: list | None, back: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        names = self.layout.names
        inputs = [row.detach().clone().requires_grad_(True) for row in x]
        given = [list(direction) for direction in v]
        world = _World(self, leg, dict(zip(names, inputs, strict=True)))
        if forces is not None:
            inputs += [slope.gradient.clone().requires_grad_(True)]
            world.gradient = inputs[-1]
            given = [[*rows, force] for rows, (force, _) in zip(given, forces, strict=True)]
        if leg.has_loss and slope is not None and slope.loss is not None:
            loss = torch.tensor(slope.loss, dtype=x.dtype, device=x.device, requires_grad=forces is not None)
            world.loss = Scalar(loss)
            if forces is not None:
                inputs += [loss]
                given = [[*rows, torch.full_like(loss, rate)] for rows, (_, rate) in zip(given, forces, strict=True)]
        with torch.enable_grad(), _Roots():
            if not back and world.loss is not None and world.parts:
                self._note(world)
            for op in reversed(leg.ops) if back else leg.ops:
                world.apply(op, back)
            outputs = [world.values[name] * 1.0 for name in names]
        out = _pushed(outputs, inputs, given)
        if not bool(torch.isfinite(out).all()):
            place = int((~torch.isfinite(out)).nonzero()[0, 2])
            name = next(k for k, (a, b, _) in self.layout.places.items() if a <= place < b)
            raise NotSmooth(
                f"the tangent of step {self.step} is not finite at {name}: a formula has no derivative there.",
                "begin at another step, or look at that parameter's gradient.",
            )
        return torch.stack(outputs).detach(), out

    def _note(self, world: "_World") -> None:
        """Note anew what the step noted, as functions of the state; decisions (a bounce) are the recorded ones."""
        recorded, world.scalars = world.scalars, {}
        self.prepare(world)
        noted = world.scalars
        world.scalars = {k: noted.get(k, v) for k, v in recorded.items()}


def _silent(opt: ReversibleOptimizer) -> ReversibleOptimizer:
    """Something with the optimizer's methods and attributes, whose own attributes can change; it warns of nothing."""
    twin = object.__new__(type(opt))
    twin.__dict__.update(opt.__dict__)
    twin.warn_once = lambda *text: None
    return twin


def _pushed(outputs: list[torch.Tensor], inputs: list[torch.Tensor], given: list[list[torch.Tensor]]) -> torch.Tensor:
    """J v for each v: the derivative of u -> J^T u, shape (k, outputs, size)."""
    us = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    pulled = torch.autograd.grad(outputs, inputs, us, create_graph=True, allow_unused=True)
    used = [i for i, x in enumerate(pulled) if x is not None and x.requires_grad]
    out = []
    for rows in given:
        along = [rows[i] for i in used]
        got = torch.autograd.grad([pulled[i] for i in used], us, along, retain_graph=True, allow_unused=True)
        out.append(torch.stack([torch.zeros_like(y) if d is None else d for d, y in zip(got, outputs, strict=True)]))
    return torch.stack(out)


@dataclass
class _World:
    """A leg in real numbers: the interface of `exact.World`."""

    taken: Taken
    leg: Leg
    values: dict[str, torch.Tensor]
    loss: Scalar | None = None
    gradient: torch.Tensor | None = None
    parts: list["_Part"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step, self.seed = self.taken.step, self.taken.seed
        self.scalars, self.carried, self.before = self.leg.scalars, self.leg.carried, self.leg.before
        self.parts = [_Part(part, self) for part in self.leg.parts]

    blocks = ()

    @property
    def mean_loss(self) -> Scalar | None:
        return self.loss

    @property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def total(self, terms: Sequence[torch.Tensor], over: str = "parts") -> Scalar | float:
        return Scalar(_bare(sum(terms))) if terms else 0.0

    def sum_of(self, formula: Callable[["_Part"], torch.Tensor]) -> Scalar | float:
        return self.total([p.sum_of(formula) for p in self.parts])

    def square(self, name: str) -> Scalar | float:
        return self.total([p.square(name) for p in self.parts])

    def apply(self, op: Op, back: bool) -> None:
        if isinstance(op, Shear):
            pieces = [(p, op.increment(p)) for p in self.parts]
            self._change(op.target, [(p, _adds(f, back)) for p, f in pieces if f is not None])
        elif isinstance(op, Contract):
            factors = [(p, op.factor(p)) for p in self.parts]
            self._change(op.target, [(p, _multiplies(c, back)) for p, c in factors])
        elif isinstance(op, Rescale):
            self._change(op.target, [(p, _multiplies(_bare(c), back)) for p, c in self._factors(op, back)])
        elif isinstance(op, Rotate):
            pairs = [(p, op.pairs(p)) for p in self.parts]
            self._change(op.target, [(p, _turns(*chosen, back)) for p, chosen in pairs if chosen is not None])
        else:
            raise NotSmooth(
                f"the program has a {type(op).__name__}, of which no tangent is known.",
                "build it of Shear, Contract, Rescale and Rotate.",
            )

    def _factors(self, op: Rescale, back: bool) -> list[tuple["_Part", Any]]:
        """Parts, or parameters, each with its factor: back as it was recorded, forward as a function of the state."""
        if f"{op.name} 0" in self.scalars:
            tensors = [tensor for p in self.parts for tensor in p.tensors]
            factors = [self.scalars[f"{op.name} {i}"] for i in range(len(tensors))] if back else op.factor(self)
            return list(zip(tensors, factors, strict=True))
        if op.name not in self.scalars:
            return []
        c = self.scalars[op.name] if back else op.factor(self)
        return [(p, c) for p in self.parts]

    def _change(self, name: str, changes: list[tuple["_Part", Callable]]) -> None:
        at, out, row = 0, [], self.values[name]
        for part, change in sorted(changes, key=lambda c: c[0].first):
            out += [row[at : part.first], change(row[part.first : part.last])]
            at = part.last
        self.values[name] = torch.cat([*out, row[at:]])


def _adds(f: torch.Tensor, back: bool) -> Callable:
    return lambda x: x - f if back else x + f


def _multiplies(c: Any, back: bool) -> Callable:
    return lambda x: x / c if back else x * c


def _turns(first: torch.Tensor, second: torch.Tensor, angle: torch.Tensor, back: bool) -> Callable:
    def turned(x: torch.Tensor) -> torch.Tensor:
        cosine, sine = torch.cos(angle), torch.sin(-angle if back else angle)
        a, b = x[first], x[second]
        return x.index_put((first,), a * cosine - b * sine).index_put((second,), a * sine + b * cosine)

    return turned


class _Part:
    """What a formula may read: the interface of `exact.Part`."""

    def __init__(self, part: Part, world: _World):
        self._part, self.world = part, world
        self.first = world.taken.layout.offsets[id(part.block)] + part.start
        self.last = self.first + part.size

    def __getitem__(self, setting: str) -> Any:
        return self._part[setting]

    def __getattr__(self, name: str) -> Any:
        if name in ("settings", "count", "size", "start", "stop", "block", "integers", "name_of"):
            return getattr(self._part, name)
        raise NotSmooth(f"a formula reads {name!r} of a part, of which no tangent is known.", "read value or gradient.")

    @property
    def gradient(self) -> torch.Tensor:
        if self.world.gradient is None:
            raise NotSmooth("a drift reads the gradient.", "drifts may not read it.")
        return self.world.gradient[self.first : self.last]

    def value(self, name: str, plus: int = 0) -> torch.Tensor:
        return self.world.values[name][self.first : self.last]

    def square(self, name: str) -> torch.Tensor:
        return sum_of_squares(self.value(name))

    def sum_of(self, formula: Callable[["_Part"], torch.Tensor]) -> torch.Tensor:
        return sum_of(_bare(formula(self)))

    @property
    def tensors(self) -> list["_Part"]:
        return [_Part(tensor, self.world) for tensor in self._part.tensors]
