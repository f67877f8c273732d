"""Section `steps`: the optimizer's own work, forward and back, with gradients that are given."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..optim import ReversibleOptimizer
from . import machine
from .plan import BenchPlan
from .subjects import LOSS, SUBJECTS, Subject, give, gradients, held, parameters
from .timing import interleaved, ratio, summary, timed

Found = dict[str, Any]
Tick = Callable[[int, int], None]
"""Called with (pieces done, pieces to do)."""

KINDS = ("fused", "foreach")
WARM = 2
_COPIES = 15


def steps(plan: BenchPlan, found: Found, tick: Tick) -> None:
    """Fill `found` with the copy bandwidth, and a row for each size and optimizer as it is finished."""
    found["copy"] = machine.copy_bandwidth(plan.copy_bytes, min(plan.repeats, _COPIES), plan.device)
    found["rows"] = []
    total, done = len(plan.sizes) * len(SUBJECTS) * plan.repeats, 0

    def one_more() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    for size in plan.sizes:
        for subject in SUBJECTS:
            found["rows"].append(_row(plan, subject, size, found["copy"]["bytes_per_second"], one_more))
            machine.empty(plan.device)


class Ours:
    """A reversible optimizer on given gradients, warm: each of its kernels has run.

    Args:
        subject: which.
        size: parameters.
        seed: of weights.
        device: where.
        gradients: given at every step.
    """

    def __init__(self, subject: Subject, size: int, seed: int, device: str, gradients: list[torch.Tensor]):
        self.gradients = gradients
        self.parameters = parameters(size, seed, device)
        self.optimizer: ReversibleOptimizer = subject.make(self.parameters)
        self._loss = {"loss": LOSS} if self.optimizer.needs_loss else {}
        give(self.parameters, gradients)
        began = time.perf_counter()
        self.step()
        self.first_step_seconds = time.perf_counter() - began
        for _ in range(WARM):
            self.step()
            self.unstep()
            self.step()

    def step(self) -> None:
        """Forward."""
        self.optimizer.step(**self._loss)

    def unstep(self) -> None:
        """Back; the gradients are put into their places again, by reference."""
        self.optimizer.unstep(self._again)

    def _again(self) -> float:
        give(self.parameters, self.gradients)
        return LOSS


def _row(plan: BenchPlan, subject: Subject, size: int, bandwidth: float, one_more: Callable[[], None]) -> Found:
    device, given = plan.device, gradients(size, plan.seed, plan.device)
    ours = Ours(subject, size, plan.seed, device, given)
    contestants: dict[str, Callable[[], Mapping[str, float]]] = {"ours": lambda: _there_and_back(ours, device)}
    twins = {}
    for kind in KINDS:
        mine = parameters(size, plan.seed, device)
        give(mine, given)
        twins[kind] = subject.make_twin(mine, kind)
        for _ in range(WARM):
            twins[kind].step()
        contestants[kind] = lambda kind=kind: {kind: timed(twins[kind].step, device)}
    seconds = interleaved(contestants, plan.repeats, one_more)
    opt, copied = ours.optimizer, {"ours": subject.bytes_moved(), "fused": subject.twin_bytes_moved()}
    resident, twin_resident = held(opt), held(twins["fused"])
    per_second = {"ours": summary(seconds["step"])["median"], "fused": summary(seconds["fused"])["median"]}
    return {
        "optimizer": subject.name,
        "twin": f"torch.optim.{subject.twin}",
        "parameters": size,
        "tensors": len(given),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "first_step_seconds": ours.first_step_seconds,
        "step_over_fused": ratio(seconds["step"], seconds["fused"]),
        "step_over_foreach": ratio(seconds["step"], seconds["foreach"]),
        "unstep_over_step": ratio(seconds["unstep"], seconds["step"]),
        "target_over_fused": subject.target,
        "tape_bits_per_parameter_step": opt.tape.bits_per_parameter_step,
        "price_bits_per_parameter_step": opt.price(),
        "resident_bytes_per_parameter": {k: v / size for k, v in resident.items()},
        "twin_resident_bytes_per_parameter": twin_resident["resident"] / size,
        "resident_over_twin_bytes_per_parameter": (resident["resident"] - twin_resident["resident"]) / size,
        "target_resident_over_twin": subject.more,
        "bytes_moved_per_parameter": copied,
        "share_of_copy_bandwidth": {k: copied[k] * size / per_second[k] / bandwidth for k in copied},
    }


def _there_and_back(ours: Ours, device: str) -> dict[str, float]:
    """A step, the same step undone, and taken again: one step further at each repeat."""
    seconds = {"step": timed(ours.step, device), "unstep": timed(ours.unstep, device)}
    ours.step()
    return seconds
