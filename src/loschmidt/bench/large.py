"""Section `gpt2`: AdamW on the shapes of GPT-2 (124 M parameters, random weights), a few steps there and back."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

from .. import optim
from ..errors import InvalidSetting
from ..exact import random
from ..models import GPT
from ..tasks.text import loss
from ..trajectory import Trajectory
from . import machine
from .plan import BYTES_PER_PARAMETER, BenchPlan, GPTPlan
from .subjects import held
from .timing import summary

Found = dict[str, Any]
Tick = Callable[[int, int], None]

_SETTINGS = {"lr": 3e-4, "weight_decay": 0.01}


def gpt2(plan: BenchPlan, found: Found, tick: Tick) -> None:
    """Fill `found`: torch's fused AdamW, ours there and back, and torch's again (the machine may have changed).

    The first step of each run is left out of the times: it fills memory, and may compile.
    """
    shape, done = plan.gpt2, 0
    _refuse_too_large(shape, plan.device)
    total, found["shape"] = 4 * shape.steps, shape.model_dump()

    def one_more() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    with machine.deterministic(plan.device):
        runs = [_torchs(plan, one_more)]
        found["torch"] = runs[0]
        machine.empty(plan.device)
        found["ours"] = ours = _ours(plan, one_more)
        machine.empty(plan.device)
        runs.append(_torchs(plan, one_more))
    seconds = [s for run in runs for s in run["seconds"]]
    found["torch"] = {
        "step_seconds": summary(seconds),
        "seconds": seconds,
        "peak_bytes": max((run["peak_bytes"] or 0 for run in runs), default=0) or None,
        "memory_since_start": runs[0]["memory_since_start"],
    }
    found["step_over_fused"] = ours["step_seconds"]["median"] / found["torch"]["step_seconds"]["median"]
    found["back_over_forward"] = ours["back_seconds"]["median"] / ours["step_seconds"]["median"]
    found["target_step_over_fused"] = 1.03 if plan.device == "cuda" else None


def _refuse_too_large(shape: GPTPlan, device: str) -> None:
    count = shape.width * (shape.symbols + shape.context + 12 * shape.layers * shape.width)
    free, needed = machine.free_memory(device), BYTES_PER_PARAMETER * count
    if free is not None and needed > free:
        raise InvalidSetting(
            f"{count / 1e6:.0f} M parameters may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            "make room, or leave gpt2 out (--only).",
        )


def _torchs(plan: BenchPlan, one_more: Callable[[], None]) -> Found:
    seconds, batches = [], _Batches(plan.gpt2, plan.seed, plan.device)
    with machine.peak(plan.device) as memory:
        model = _model(plan)
        opt = torch.optim.AdamW(model.parameters(), **_SETTINGS, fused=True)
        for step in range(plan.gpt2.steps):
            began = _now(plan.device)
            opt.zero_grad()
            loss(model, batches(step)).backward()
            opt.step()
            seconds.append(_now(plan.device) - began)
            one_more()
    return {
        "seconds": seconds[1:],
        "peak_bytes": memory["peak_bytes"],
        "memory_since_start": memory.get("since_start", False),
    }


def _ours(plan: BenchPlan, one_more: Callable[[], None]) -> Found:
    shape, at, after_backward = plan.gpt2, [], []

    def on_step(_: Trajectory) -> None:
        at.append(_now(plan.device))
        one_more()

    with machine.peak(plan.device) as memory:
        model = _model(plan)
        opt = optim.AdamW(model.parameters(), **_SETTINGS)
        batches = _Batches(shape, plan.seed, plan.device)
        look = lambda _: after_backward.append(_now(plan.device))  # noqa: E731
        traj = Trajectory(model, opt, loss, batches, seed=plan.seed, after_backward=look)
        start = traj.digest()
        traj.seek(shape.steps, on_step=on_step)
        forward, kicks = at.copy(), after_backward[-shape.steps :]  # preflight comes before
        turn, bits = traj.digest(), traj.tape.bits_per_parameter_step
        at.clear()
        traj.seek(0, on_step=on_step)
    end, resident = traj.digest(), held(opt)
    return {
        "parameters": opt.numel,
        "exact": end == start and turn != start,
        "start_digest": start,
        "turn_digest": turn,
        "end_digest": end,
        "step_seconds": summary(_gaps(forward)),
        "back_seconds": summary(_gaps(at)),
        "optimizer_step_seconds": summary([b - a for a, b in zip(kicks, forward, strict=True)][1:]),
        "tape_bits_per_parameter_step": bits,
        "price_bits_per_parameter_step": opt.price(),
        "resident_bytes_per_parameter": resident["resident"] / opt.numel,
        "peak_bytes": memory["peak_bytes"],
        "memory_since_start": memory.get("since_start", False),
    }


def _gaps(times: list[float]) -> list[float]:
    """Seconds of each step but the first."""
    return [b - a for a, b in itertools.pairwise(times)]


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _model(plan: BenchPlan) -> GPT:
    s = plan.gpt2
    return GPT(s.symbols, s.context, s.width, s.layers, s.heads, dropout=0.0, seed=plan.seed).to(plan.device)


class _Batches:
    """Windows of random symbols: step -> batch, the same at every call."""

    def __init__(self, shape: GPTPlan, seed: int, device: str):
        self.shape, self.seed, self.device = shape, seed, device

    def __call__(self, step: int) -> torch.Tensor:
        draw = random.generator("bench", "symbols", self.seed, step)
        symbols = draw.integers(self.shape.symbols, size=(self.shape.batch_size, self.shape.length + 1))
        return torch.from_numpy(symbols).to(self.device)
