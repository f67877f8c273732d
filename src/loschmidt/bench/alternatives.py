"""Section `alternatives`: what else takes a run back: checkpoints, deltas, replay; in memory, beside the tape.

checkpoints     a copy of parameters and state before every step
deltas          xor of the bits of parameters and state before and after every step
deltas, zlib    the same, bytes sorted by significance and compressed
replay          a checkpoint every sqrt(T) steps; between them the run is repeated
tape            ours

All train the same small GPT (no dropout) on the same batches with AdamW. Going back means parameters and state before
the step, to the bit; each is checked at step 0. In a sweep every step is visited, so replay keeps the states of the
stretch it has just repeated.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch

from .. import optim
from ..data import Schedule
from ..models import GPT
from ..tasks import Task
from ..tasks import text as text_task
from ..tasks.text import SYMBOLS
from . import machine
from .plan import BenchPlan
from .subjects import held
from .timing import summary, timed, undisturbed

Found = dict[str, Any]
Tick = Callable[[int, int], None]
State = list[torch.Tensor]

_SETTINGS = {"lr": 3e-3, "weight_decay": 0.01}


def alternatives(plan: BenchPlan, found: Found, tick: Tick) -> None:
    """Fill `found` with a row for each way to go back."""
    found["rows"] = []
    with machine.deterministic(plan.device):
        task = text_task(seed=plan.seed)
        for number, way in enumerate(_WAYS):
            tick(number, len(_WAYS))
            found["rows"].append(_row(plan, task, way))
            machine.empty(plan.device)
        tick(len(_WAYS), len(_WAYS))


def _row(plan: BenchPlan, task: Task, way: type["_Way"]) -> Found:
    device, count = plan.device, plan.alternatives_steps
    run = way(plan, task)
    start = [x.clone() for x in run.state()]
    run.forward()  # once to warm up, and back
    run.back()
    with undisturbed():
        out = [timed(run.forward, device) for _ in range(count)]
        stored = run.bytes()
        singles = []
        for _ in range(run.single_samples()):
            singles.append(timed(run.back_once, device))
        while run.at < count:
            run.forward()
        sweep = timed(lambda: [run.back() for _ in range(run.at)], device)
    return {
        "way": way.name,
        "parameters": run.size,
        "steps": count,
        "bytes_per_step": stored / count,
        "bytes_per_parameter_step": stored / count / run.size,
        "constant_bytes": run.constant_bytes(),
        "forward_seconds": summary(out),
        "back_once_seconds": summary(singles),
        "sweep_seconds": sweep,
        "exact": all(torch.equal(a, b) for a, b in zip(run.state(), start, strict=True)) and run.at == 0,
    }


class _Way(ABC):
    """Training with torch's fused AdamW that remembers nothing. Subclasses remember, and go back."""

    name: ClassVar[str]

    def __init__(self, plan: BenchPlan, task: Task):
        width = plan.alternatives_width - plan.alternatives_width % 4
        self.model = GPT(len(SYMBOLS), width=width, dropout=0.0, seed=plan.seed).to(plan.device)
        self.loss, self.at = task.loss, 0
        self.data = Schedule(task.train.to(plan.device), batch_size=task.batch_size, seed=plan.seed)
        self.parameters = list(self.model.parameters())
        self.size = sum(p.numel() for p in self.parameters)
        self.every = round(math.sqrt(plan.alternatives_steps))
        self.optimizer = self.make()

    def make(self) -> torch.optim.Optimizer:
        """The optimizer, its state in place, so that the state before the first step can be stored, too."""
        opt = torch.optim.AdamW(self.parameters, **_SETTINGS, fused=True)
        for p in self.parameters:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            opt.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return opt

    def state(self) -> State:
        """Parameters and state, not copied."""
        rest = [x for p in self.parameters for x in self.optimizer.state[p].values()]
        return [p.detach() for p in self.parameters] + rest

    def copy(self) -> State:
        return [x.clone() for x in self.state()]

    def put(self, state: State) -> None:
        torch._foreach_copy_(self.state(), state)

    def passes(self) -> torch.Tensor:
        """Loss and gradients at the present state, on the batch of the step to come."""
        self.optimizer.zero_grad()
        loss = self.loss(self.model, self.data(self.at))
        loss.backward()
        return loss

    def train(self) -> None:
        """One step, without remembering."""
        self.passes()
        self.optimizer.step()
        self.at += 1

    @abstractmethod
    def forward(self) -> None:
        """One step, remembered."""

    @abstractmethod
    def back(self) -> None:
        """One step back, as part of a sweep."""

    def back_once(self) -> None:
        """One step back, with nothing but what the way forward left."""
        self.back()

    @abstractmethod
    def bytes(self) -> float:
        """Of all that is remembered."""

    def constant_bytes(self) -> int:
        """Held beyond torch's state, however long the run."""
        return 0

    def single_samples(self) -> int:
        """How many single steps back are timed."""
        return max(1, min(self.every, self.at))


class _Checkpoints(_Way):
    name = "checkpoints"

    def __init__(self, plan: BenchPlan, task: Task):
        super().__init__(plan, task)
        self.kept: list[State] = []

    def forward(self) -> None:
        self.kept.append(self.copy())
        self.train()

    def back(self) -> None:
        self.put(self.kept.pop())
        self.at -= 1

    def bytes(self) -> float:
        return sum(x.nbytes for state in self.kept for x in state)


class _Deltas(_Checkpoints):
    name = "deltas"

    def forward(self) -> None:
        before = self.copy()
        self.train()
        self.kept.append([a.view(torch.int32) ^ b.view(torch.int32) for a, b in zip(self.state(), before, strict=True)])

    def back(self) -> None:
        for x, delta in zip(self.state(), self.kept.pop(), strict=True):
            x.view(torch.int32).bitwise_xor_(delta)
        self.at -= 1


class _Compressed(_Way):
    name = "deltas, zlib"

    def __init__(self, plan: BenchPlan, task: Task):
        super().__init__(plan, task)
        self.kept: list[list[bytes]] = []

    def forward(self) -> None:
        before = self.copy()
        self.train()
        deltas = (a.view(torch.int32) ^ b.view(torch.int32) for a, b in zip(self.state(), before, strict=True))
        self.kept.append([_squeeze(x.cpu().numpy()) for x in deltas])

    def back(self) -> None:
        for x, squeezed in zip(self.state(), self.kept.pop(), strict=True):
            delta = torch.from_numpy(_unsqueeze(squeezed)).view(x.shape)
            x.view(torch.int32).bitwise_xor_(delta.to(x.device))
        self.at -= 1

    def bytes(self) -> float:
        return sum(len(piece) for step in self.kept for piece in step)


def _squeeze(delta: np.ndarray) -> bytes:
    planes = np.ascontiguousarray(delta.reshape(-1, 1).view(np.uint8).T)  # the first bytes of all, the second, ...
    return zlib.compress(planes.tobytes(), 1)


def _unsqueeze(squeezed: bytes) -> np.ndarray:
    planes = np.frombuffer(bytearray(zlib.decompress(squeezed)), np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(np.int32)


class _Replay(_Way):
    name = "replay"

    def __init__(self, plan: BenchPlan, task: Task):
        super().__init__(plan, task)
        self.kept: dict[int, State] = {}
        self.stretch: list[State] = []  # of the steps after the last checkpoint, in a sweep

    def forward(self) -> None:
        if self.at % self.every == 0:
            self.kept[self.at] = self.copy()
        self.train()

    def back(self) -> None:
        if not self.stretch:
            self.stretch = list(self._states(self.at - 1))
        self.put(self.stretch.pop())
        self.at -= 1
        self._forget()

    def back_once(self) -> None:
        for _ in self._states(self.at - 1, copies=False):
            pass
        self._forget()

    def _states(self, target: int, copies: bool = True) -> Iterator[State]:
        """From the last checkpoint up to the target: the states on the way (or nothing), which is then the present."""
        now = self.at
        self.at = target - target % self.every
        self.put(self.kept[self.at])
        while True:
            yield self.copy() if copies else []
            if self.at == target:
                break
            self.train()
        self.at = now if copies else target

    def _forget(self) -> None:
        for step in [step for step in self.kept if step > self.at]:
            del self.kept[step]

    def bytes(self) -> float:
        """With the states of one stretch, which a sweep keeps while it needs them."""
        one = sum(x.nbytes for x in self.state())
        return (len(self.kept) + self.every) * one


class _Tape(_Way):
    name = "tape"

    def make(self) -> torch.optim.Optimizer:
        return optim.AdamW(self.parameters, **_SETTINGS)

    def state(self) -> State:
        seen = {id(s.block): s.block for s in self.optimizer._slots}
        return [p.detach() for p in self.parameters] + [x.n for b in seen.values() for x in b.lattices.values()]

    def forward(self) -> None:
        self.train()

    def back(self) -> None:
        self.at -= 1
        self.optimizer.unstep(self.passes)

    def bytes(self) -> float:
        return self.optimizer.tape.bits / 8 + self.optimizer.journal.bytes

    def constant_bytes(self) -> int:
        """Integers and the like that are held instead of torch's two floats."""
        return held(self.optimizer)["resident"] - 8 * self.size


_WAYS: tuple[type[_Way], ...] = (_Tape, _Checkpoints, _Deltas, _Compressed, _Replay)
