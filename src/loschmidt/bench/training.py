"""Section `training`: whole steps of the small GPT, forward pass, backward pass and optimizer."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import optim
from ..data import Schedule
from ..optim import ReversibleOptimizer, replay
from ..tasks import Task
from ..tasks import text as text_task
from ..trajectory import Trajectory
from . import machine
from .plan import BenchPlan
from .timing import interleaved, ratio, summary, timed

Found = dict[str, Any]
Tick = Callable[[int, int], None]

SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 3e-3, "weight_decay": 0.01},
    "SGD": {"lr": 0.06, "momentum": 0.9},
}
"""Optimizers of ours and of torch, with the same settings."""


def training(plan: BenchPlan, found: Found, tick: Tick) -> None:
    """Fill `found` with a row for each optimizer."""
    found["rows"] = []
    counter, total = itertools.count(1), len(SETTINGS) * plan.repeats
    with machine.deterministic(plan.device):
        for name in SETTINGS:
            found["rows"].append(_row(plan, name, lambda: tick(next(counter), total)))
            machine.empty(plan.device)


def _row(plan: BenchPlan, name: str, one_more: Callable[[], None]) -> Found:
    block, device = plan.block, plan.device
    twin, loop, walk = _Twin(plan, name), _Loop(plan, name), _walk(plan, name)

    def by_hand() -> Mapping[str, float]:
        seconds = {"step": timed(loop.step, device, block), "unstep": timed(loop.unstep, device, block)}
        loop.step()  # one step further at each repeat
        return seconds

    def by_seek() -> Mapping[str, float]:
        start = walk.step
        seconds = {
            "seek_forward": timed(lambda: walk.seek(start + block), device) / block,
            "seek_back": timed(lambda: walk.seek(start), device) / block,
        }
        walk.seek(start + 1)
        return seconds

    contestants = {"fused": lambda: {"fused": timed(twin.step, device, block)}, "loop": by_hand, "seek": by_seek}
    for measure in contestants.values():  # once to warm up
        measure()
    seconds = interleaved(contestants, plan.repeats, one_more)
    return {
        "optimizer": name,
        "settings": SETTINGS[name],
        "parameters": loop.optimizer.numel,
        "batch_size": walk.data.batch_size,
        "block": block,
        "seconds": {key: summary(values) for key, values in seconds.items()},
        "step_over_fused": ratio(seconds["step"], seconds["fused"]),
        "unstep_over_step": ratio(seconds["unstep"], seconds["step"]),
        "seek_over_fused": ratio(seconds["seek_forward"], seconds["fused"]),
        "seek_back_over_forward": ratio(seconds["seek_back"], seconds["seek_forward"]),
        "target_step_over_fused": 1.10,
        "target_back_over_forward": 1.2,
    }


def _prepared(plan: BenchPlan) -> tuple[Task, Callable[[int], torch.Tensor]]:
    """The task with its model where it is measured, and its batches there."""
    task = text_task(seed=plan.seed)
    task.model.to(plan.device)
    return task, Schedule(task.train.to(plan.device), batch_size=task.batch_size, seed=plan.seed)


class _Twin:
    """A plain loop with torch's fused optimizer."""

    def __init__(self, plan: BenchPlan, name: str):
        self.task, self.data = _prepared(plan)
        self.at = 0
        self.optimizer = getattr(torch.optim, name)(self.task.model.parameters(), **SETTINGS[name], fused=True)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.task.loss(self.task.model, self.data(self.at)).backward()
        self.optimizer.step()
        self.at += 1


class _Loop:
    """The same loop with ours, and its way back."""

    def __init__(self, plan: BenchPlan, name: str):
        self.task, self.data = _prepared(plan)
        self.optimizer: ReversibleOptimizer = getattr(optim, name)(self.task.model.parameters(), **SETTINGS[name])
        self.at = 0

    def step(self) -> None:
        self._passes()
        self.optimizer.step()
        self.at += 1

    def unstep(self) -> None:
        self.at -= 1
        self.optimizer.unstep(self._passes)

    def _passes(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        with replay(self.optimizer, self.task.model):
            loss = self.task.loss(self.task.model, self.data(self.at))
            loss.backward()
        return loss


def _walk(plan: BenchPlan, name: str) -> Trajectory:
    task, data = _prepared(plan)
    opt = getattr(optim, name)(task.model.parameters(), **SETTINGS[name])
    return Trajectory(task.model, opt, task.loss, data, seed=plan.seed)
