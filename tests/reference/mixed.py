"""A small network, and one way of training it that a case describes: compiled, in bfloat16, accumulating."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import loschmidt as lo

from .bits import State, bits_of, damage, differences

STEPS = 8


class Net(nn.Module):
    """Regression with BatchNorm and dropout."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)
        self.drop = nn.Dropout(0.3)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


@dataclass
class Case:
    """How to train.

    Attributes:
        compiled: what torch.compile is given; None: not compiled. `in_place`: by `model.compile`.
        autocast: bfloat16 autocast around each forward pass.
        dtype: of the parameters.
        micro: micro-batches whose gradients are accumulated in each step.
        rows: how many the batch of a step has.
    """

    kind: type = lo.optim.AdamW
    settings: dict[str, Any] = field(default_factory=lambda: {"lr": 0.01, "weight_decay": 0.1})
    compiled: dict[str, Any] | None = None
    in_place: bool = False
    autocast: bool = False
    dtype: torch.dtype = torch.float32
    micro: int = 1
    rows: Callable[[int], int] = lambda step: 12

    def model(self) -> nn.Module:
        model = Net(self.dtype)
        if self.compiled is not None and self.in_place:
            model.compile(**self.compiled)
        elif self.compiled is not None:
            return torch.compile(model, **self.compiled)
        return model

    def batch(self, step: int) -> torch.Tensor:
        rows = self.rows(step)
        return torch.linspace(-1, 1 + step, rows * 6).view(rows, 6).sin().to(self.dtype)

    def part(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext():
            out = model(x)
        return (out.float() - 1).square().mean()

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Of the whole batch; all micro-batches but the last have gone backward already."""
        parts, total = batch.chunk(self.micro), 0.0
        for i, x in enumerate(parts):
            share = self.part(model, x) / len(parts)
            if torch.is_grad_enabled() and i + 1 < len(parts):
                share.backward()
                share = share.detach()
            total = total + share
        return total


class Walk:
    """Forward and back along a case."""

    def __init__(self, case: Case):
        torch._dynamo.reset()
        self.case, self.model = case, case.model()
        self.opt = case.kind(self.model.parameters(), **case.settings)
        self.opt.accumulates = case.micro > 1

    def bits(self) -> State:
        return bits_of(self.opt, self.model)

    def digest(self) -> str:
        return self.opt.digest()


class InTrajectory(Walk):
    """... by `Trajectory`."""

    def __init__(self, case: Case):
        super().__init__(case)
        self.traj = lo.Trajectory(self.model, self.opt, case.loss, case.batch, digest_every=3)

    def seek(self, step: int) -> None:
        self.traj.seek(step)

    def digest(self) -> str:
        return self.traj.digest()

    def damaged(self, place: str) -> State:
        with self.traj.branch():
            damage(self.opt, place)
            with contextlib.suppress(lo.LoschmidtError):
                self.seek(0)
            return self.bits()


class InLoop(Walk):
    """... by `step` and `unstep` in a loop of one's own."""

    def passes(self, step: int) -> torch.Tensor:
        self.opt.zero_grad()
        shares = []
        for x in self.case.batch(step).chunk(self.case.micro):
            with lo.replay(self.opt, self.model):  # once for each micro-batch
                shares.append(self.case.part(self.model, x) / self.case.micro)
                shares[-1].backward()
        return sum(share.detach() for share in shares)

    def seek(self, step: int) -> None:
        while self.opt.steps < step:
            self.opt.step(loss=self.passes(self.opt.steps))
        while self.opt.steps > step:
            self.opt.unstep(lambda: self.passes(self.opt.steps - 1))

    def damaged(self, place: str) -> State:
        state, model = copy.deepcopy(self.opt.state_dict()), copy.deepcopy(self.model.state_dict())
        damage(self.opt, place)
        with contextlib.suppress(lo.LoschmidtError):
            self.seek(0)
        reached = self.bits()
        self.opt.load_state_dict(state)
        self.model.load_state_dict(model)
        return reached


WAYS = {"trajectory": InTrajectory, "loop": InLoop}


def wrong(case: Case, way: str) -> list[str]:
    """What is not as it should be after going forward and back, and again with one bit flipped at the turn."""
    walk = WAYS[way](case)
    start, digest = walk.bits(), walk.digest()
    walk.seek(STEPS)
    turn = walk.bits()
    found = [] if {"q of parameter 0", "planes of tape 0"} & {*differences(start, turn)} else ["nothing moved"]
    walk.seek(0)
    found += [f"{name} after the way back" for name in differences(start, walk.bits())]
    found += ["the digest after the way back"] * (walk.digest() != digest)
    walk.seek(STEPS)
    found += [f"{name} after going forward again" for name in differences(turn, walk.bits())]
    places = ["q", next(k for k in walk.opt.lattices), "check"]
    for place in places if case.kind is lo.optim.ECD else [*places, "check"]:
        if not differences(start, walk.damaged(place)):
            found.append(f"a flipped bit of {place} was not noticed")
    return found + [f"{name} after the damage was mended" for name in differences(turn, walk.bits())]
