"""Kill a run at random moments, and look at what is left: the harness of the test and of the benchmark.

Each trial forks a process that walks forward, into branches, back, and forward again, committing every few steps; it is
killed with SIGKILL at a random moment. Another forked process opens what is left, and finishes the run.
"""

import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
from torch import nn

import loschmidt as lo
from loschmidt.trajectory.folder import Folder

FAR, NEAR, EVERY = 26, 9, 3
PHASES = ("start", "forward", "branch", "back", "commit", "done")
OPTIMIZERS = {
    "SGD": (lo.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "AdamW": (lo.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "ECD": (lo.optim.ECD, {"lr": 0.1, "delta_energy": 2.0, "conserve": "rescale"}),
}


def parts(name: str) -> tuple[nn.Module, lo.optim.ReversibleOptimizer, Callable, lo.data.Schedule]:
    """A network with BatchNorm and dropout, an optimizer, a loss and mini-batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.1), nn.Linear(24, 24), nn.Linear(24, 1)
        )
        x = torch.randn(50, 6)
    kind, settings = OPTIMIZERS[name]
    data = lo.data.Schedule((x, x[:, :1] * x[:, 1:2] + 3.0), batch_size=16, seed=2)
    return model, kind(model.parameters(), **settings), loss, data


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


class Board:
    """Memory that parent and child share: phase, the step being committed, the step committed last."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 24)

    def put(self, at: int, value: int) -> None:
        self.memory[8 * at : 8 * at + 8] = struct.pack("<q", value)

    def get(self, at: int) -> int:
        return struct.unpack("<q", self.memory[8 * at : 8 * at + 8])[0]


def walk(folder: Path, name: str, board: Board) -> None:
    """What the killed process does."""
    commit = Folder.commit

    def watched(self: Folder, traj: lo.Trajectory, **how: bool) -> None:
        phase = board.get(0)
        board.put(0, PHASES.index("commit"))
        board.put(1, traj.step)
        commit(self, traj, **how)
        board.put(2, traj.step)
        board.put(0, phase)

    Folder.commit = watched
    model, opt, loss, data = parts(name)
    traj = lo.Trajectory(model, opt, loss, data, tape=folder, commit_every=EVERY, digest_every=10)
    for phase, target in (("forward", FAR), ("branch", NEAR), ("back", NEAR), ("forward", FAR), ("back", 0)):
        board.put(0, PHASES.index(phase))
        if phase == "branch":
            with traj.branch():
                traj.seek(NEAR)
                with traj.edit():
                    model[0].weight.data.mul_(1.5)
                traj.seek(FAR)
        else:
            traj.seek(target)
    board.put(0, PHASES.index("done"))


def finish(folder: Path, name: str) -> dict:
    """What the next process does: open, go to the end and to the start, and tell digests."""
    model, _, loss, data = parts(name)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # nothing may depend on what the model was
    with lo.Trajectory.load(folder, model=model, loss=loss, data=data) as traj:
        step = traj.step
        return {"step": step, "end": traj.seek(FAR).digest(), "start": traj.seek(0).digest()}


def uninterrupted(name: str) -> dict:
    model, opt, loss, data = parts(name)
    traj = lo.Trajectory(model, opt, loss, data, digest_every=10)
    start = traj.digest()
    return {"start": start, "end": traj.seek(FAR).digest()}


def forked(job: Callable[[], dict]) -> dict:
    """The result of a function run in a forked process; raises what it printed if that fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            text = json.dumps(job())
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()})
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        result = json.loads(f.read())
    os.waitpid(child, 0)
    if "error" in result:
        raise AssertionError(result["error"])
    return result


def trial(folder: Path, name: str, dice: random.Random, seconds: float, expected: dict) -> tuple[str, str]:
    """One kill. Returns the phase it fell into, and what was wrong afterwards ("" for nothing)."""
    shutil.rmtree(folder, ignore_errors=True)
    board = Board()
    board.put(2, -1)
    child = os.fork()
    if child == 0:
        try:
            walk(folder, name, board)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(0)
    time.sleep(dice.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    phase, trying, committed = PHASES[board.get(0)], board.get(1), board.get(2)
    if committed < 0 and not (folder / "manifest.json").exists():
        return "start", ""  # killed before the first commit: there is no run yet
    try:
        found = forked(lambda: finish(folder, name))
    except AssertionError as error:
        return phase, f"{error}"
    allowed = {committed, trying} if phase == "commit" else {committed}
    if found["step"] not in allowed:
        return phase, f"recovered step {found['step']}, but {committed} was committed"
    wrong = [k for k in expected if found[k] != expected[k]]
    return phase, f"other bits at the {' and the '.join(wrong)}" if wrong else ""


def kills(
    folder: Path, count: int, seed: int, tick: Callable[[], None] = lambda: None, sync: bool = True
) -> tuple[Counter, list[str]]:
    """Kill `count` runs. Returns how many fell into each phase, and what was wrong.

    Without `sync` nothing waits for the disk: what a killed process wrote is there all the same, and it is faster.
    """
    torch.set_num_threads(1)  # a process with threads must not fork
    if not sync:
        os.fsync = lambda handle: None
    dice, phases, wrong = random.Random(seed), Counter(), []
    expected = {name: forked(lambda name=name: uninterrupted(name)) for name in OPTIMIZERS}
    seconds = {}
    for name in OPTIMIZERS:
        began = time.monotonic()
        forked(lambda name=name: walk(folder / f"whole-{name}", name, Board()) or {})
        seconds[name] = 1.1 * (time.monotonic() - began)
    for i in range(count):
        name = [*OPTIMIZERS][i % len(OPTIMIZERS)]
        phase, what = trial(folder / "run", name, dice, seconds[name], expected[name])
        phases[phase] += 1
        if what:
            wrong.append(f"trial {i}, {name}, {phase}: {what}")
        tick()
    return phases, wrong
