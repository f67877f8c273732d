"""Naive reversal: an optimizer's program in plain floats, undone algebraically, as one would without a lattice.

Undoing x *= c divides by c, which amplifies the rounding error of x by 1/c a step. With friction c = momentum the
error passes one after about (mantissa bits) / log2(1/momentum) steps: 158 in float32 and 349 in float64 at 0.9
(arXiv 1502.03492 makes the argument). Without friction it grows only as fast as the dynamics are chaotic.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import InvalidSetting, NonFinite
from ..exact import Contract, Op, Rescale, Shear, sum_of, sum_of_squares


@dataclass
class _FloatPart:
    """What a formula may read of a float state: the interface of `exact.Part`."""

    values: dict[str, torch.Tensor]
    gradient: torch.Tensor
    settings: dict[str, Any]
    count: int
    world: "_FloatWorld"
    start: int = 0

    def __getitem__(self, setting: str) -> Any:
        return self.settings[setting]

    @property
    def size(self) -> int:
        return self.gradient.numel()

    def value(self, name: str, plus: int = 0) -> torch.Tensor:
        return self.values[name]

    @property
    def tensors(self) -> list["_FloatPart"]:
        return [self]

    def square(self, name: str) -> torch.Tensor:
        return sum_of_squares(self.values[name])

    def sum_of(self, formula: Callable[["_FloatPart"], torch.Tensor]) -> torch.Tensor:
        return sum_of(formula(self))


@dataclass
class _FloatWorld:
    """One step of a float state: the interface of `exact.World`."""

    loss: float
    step: int
    parts: list[_FloatPart] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    blocks: tuple[()] = ()

    @property
    def mean_loss(self) -> float:
        return self.loss

    @property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def total(self, terms: Sequence[torch.Tensor]) -> float:
        return float(sum(terms))

    def square(self, name: str) -> float:
        return self.total([p.square(name) for p in self.parts])

    def sum_of(self, formula: Callable[[_FloatPart], torch.Tensor]) -> float:
        return self.total([p.sum_of(formula) for p in self.parts])


class NaiveRun:
    """A float run of a program of ops, that can be stepped forward, and backward as well as floats allow.

    Args:
        parameters: tensors that the gradient function reads; changed in place. Their dtype is that of the state.
        gradient: computes loss and gradients of a step at the present parameters: step -> (loss, list of tensors).
            A step is evaluated again on the way back: with the same batch and the same dropout, or nothing is undone.
            Module buffers are not this class's care: batch norm's running statistics, which no gradient in train
            mode reads, go on changing on the way back.
        kicks: as in an optimizer.
        drifts: as in an optimizer.
        settings: hyper-parameters that the ops read.
        lattices: names of the state besides "q".
        prepare: an optimizer's, which notes what a step's ops read; None if they need nothing.
        carries: an optimizer's: which of these notes later steps read, too.
        state: flat values by lattice ("q" among them) to begin with; default: the parameters, and zeros.
        step: at which it stands.

    Attributes:
        loss: of the step that was undone last.
        scalars: what steps noted, by step; those of a forward step are added.
        carried: what later steps read of it.

    Raises:
        InvalidSetting: a program with a `Rotate` that does something, or a momentum rescaled tensor by tensor: these
            have no naive float form here.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        gradient: Callable[[int], tuple[float, list[torch.Tensor]]],
        kicks: Sequence[Op],
        drifts: Sequence[Op],
        settings: dict[str, Any],
        lattices: Sequence[str],
        prepare: Callable[[Any], None] | None = None,
        carries: Collection[str] = (),
        state: dict[str, torch.Tensor] | None = None,
        step: int = 0,
    ):
        self.parameters, self.gradient, self.settings = list(parameters), gradient, settings
        self.kicks, self.drifts = kicks, drifts
        self.prepare, self.carries = prepare, carries
        for name in ("nu", "bounces", "patience"):
            if settings.get(name):
                raise InvalidSetting("scattering has no naive float reversal.", f"use {name}=0.")
        if settings.get("projection") == "per-tensor":
            raise InvalidSetting("projection='per-tensor' has no naive float reversal.", 'use projection="global".')
        q = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.values = {"q": q} | {name: torch.zeros_like(q) for name in lattices}
        for name, value in (state or {}).items():
            self.values[name] = value.to(q).clone()
        self.step, self.loss = step, math.nan
        self.scalars: dict[int, dict[str, float]] = {}
        self.carried: dict[str, float] = {}
        if state is not None:
            with torch.no_grad():
                self._write()

    @torch.no_grad()
    def forward(self) -> None:
        """One step; NonFinite if the floats blow up."""
        world = self._world(self.step)
        if not math.isfinite(world.loss):
            raise NonFinite(f"the float run's loss is {world.loss} at step {self.step}.", "lower lr.")
        if self.prepare is not None:
            self.prepare(world)
        for op in (*self.kicks, *self.drifts):
            self._apply(op, world, 1)
        self._write()
        self.scalars[self.step] = world.scalars
        self.carried |= {k: v for k, v in world.scalars.items() if k in self.carries}
        self.step += 1

    @torch.no_grad()
    def back(self) -> None:
        """One step back, algebraically: drifts with the momenta at hand, then kicks with the gradient found there."""
        self.step -= 1
        world = _FloatWorld(0.0, self.step, scalars=self.scalars[self.step], carried=self.carried)
        world.parts = [_FloatPart(self.values, self.values["q"], self.settings, self.step + 1, world)]
        for op in reversed(self.drifts):
            self._apply(op, world, -1)
        self._write()
        world = self._world(self.step)
        self.loss = world.loss
        for op in reversed(self.kicks):
            self._apply(op, world, -1)

    def _world(self, step: int) -> _FloatWorld:
        with torch.enable_grad():
            loss, gradients = self.gradient(step)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        world = _FloatWorld(loss, step, scalars=self.scalars.get(step, {}), carried=self.carried)
        world.parts = [_FloatPart(self.values, flat, self.settings, step + 1, world)]
        return world

    def _apply(self, op: Op, world: _FloatWorld, sign: int) -> None:
        x, part = self.values[op.target], world.parts[0]
        if isinstance(op, Shear):
            increment = op.increment(part)
            if increment is not None:
                x.add_(increment.to(x.dtype), alpha=sign)
        elif isinstance(op, Contract):
            factor = op.factor(part)
            x.mul_(factor) if sign > 0 else x.div_(factor)
        elif isinstance(op, Rescale):
            if op.name not in world.scalars:
                world.scalars[op.name] = op.factor(world)
            factor = world.scalars[op.name]
            x.mul_(factor) if sign > 0 else x.div_(factor)

    def _write(self) -> None:
        at = 0
        for p in self.parameters:
            p.copy_(self.values["q"][at : at + p.numel()].view(p.shape))
            at += p.numel()
