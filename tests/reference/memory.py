"""Flip single bits of a run in memory, and see whether anybody notices: the harness of the test and of the benchmark.

A run stands at its turn. In a branch, one bit of one thing is flipped (at the turn; or on the way back; or on a way
forward before it), the run goes back to step 0, and every bit there is compared with what it was before the run began.
"""

import copy
import random
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import loschmidt as lo
from loschmidt.optim import flat
from loschmidt.optim.settings import plain

from .bits import bits_of, differences

SUBJECTS: dict[str, tuple[type, dict[str, Any], bool, int]] = {
    "SGD": (lo.optim.SGD, {"lr": 0.05, "momentum": 0.5, "weight_decay": 1e-3}, True, 40),
    "Adam": (lo.optim.Adam, {"lr": 0.005}, True, 110),
    "AdamW": (lo.optim.AdamW, {"lr": 0.005, "betas": (0.6, 0.9), "weight_decay": 0.1}, True, 30),
    "AdamW-int32": (
        lo.optim.AdamW,
        {"lr": 0.005, "weight_decay": 0.1, "lattice": {"q": torch.int32}, "resolution": 2.0**-24},
        True,
        30,
    ),
    "ECD": (lo.optim.ECD, {"lr": 0.1, "weight_decay": 1e-3}, True, 40),
    "ECD-rescaled": (lo.optim.ECD, {"lr": 0.2, "delta_energy": 2.0, "nu": 1e-4, "conserve": "rescale"}, True, 110),
    "ECD-composed": (lo.optim.ECD, {"lr": 0.1, "integrator": "leapfrog"}, False, 20),
    "BBI": (
        lo.optim.BBI,
        {"lr": 0.1, "delta_energy": 2.0, "conserve": "rescale", "bounces": 3, "bounce_every": 15, "patience": 8},
        True,
        40,
    ),
    "ECDq1": (lo.optim.ECDq1, {"lr": 0.02, "eta": 30.0, "weight_decay": 1e-3}, True, 40),
    "AdamW-deep": (lo.optim.AdamW, {"lr": 0.002, "weight_decay": 0.1}, True, 12),
}
"""Class, settings, whether there is a BatchNorm (and dropout), and the step of the turn."""

DIGEST_EVERY = 100
WHEN = ("at the turn", "on the way back", "on the way forward")

Undo = Callable[[], None]
Place = Callable[[random.Random, lo.Trajectory], Undo | None]


class Model(nn.Module):
    """BatchNorm and dropout if wanted; a weight that is frozen, and one that no param group holds."""

    def __init__(self, width: int, norm: bool):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.frozen, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
            self.outside = nn.Parameter(torch.randn(3), requires_grad=False)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.1 if norm else 0.0)
        if width < 100:
            self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(torch.tanh(self.norm(self.first(x))))
        return self.last(x + torch.tanh(self.frozen(x))) + self.outside


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make(name: str) -> lo.Trajectory:
    """A new run of a subject."""
    kind, settings, norm, _ = SUBJECTS[name]
    model = Model(300 if name.endswith("deep") else 10, norm)
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    data = lo.data.Schedule((x, (x[:, 0] > 0).long() + (x[:, 1] > 0)), batch_size=8, seed=1)
    held = [(n, p) for n, p in model.named_parameters() if n != "outside"]
    lr = (lambda step: min(1.0, (step + 1) / 10)) if norm else None
    return lo.Trajectory(model, kind(held, **settings), loss, data, lr=lr, digest_every=DIGEST_EVERY)


def everything(traj: lo.Trajectory) -> dict[str, torch.Tensor]:
    """Every bit of the state, with what is no tensor as text."""
    opt = traj.optimizer
    rest = {
        "carried": {k: v.hex() for k, v in sorted(opt.carried.items())},
        "exponents": [[lat.exponent for lat in b.lattices.values()] for b, _ in flat.by_block(opt._slots)],
        "counts": [s.count for s in opt._slots],
        "element steps": opt.tape.element_steps,
        "settings": [sorted((k, repr(v)) for k, v in plain(group).items()) for group in opt.param_groups],
    }
    texts = {k: torch.tensor(list(repr(v).encode()), dtype=torch.uint8) for k, v in rest.items()}
    return bits_of(opt, traj.model) | texts


# -- places --------------------------------------------------------------------------------------------


def of_tensor(x: torch.Tensor, dice: random.Random) -> Undo:
    """Flip any bit of a tensor's memory, of which the branch has a copy."""
    of_bytes(x.detach().view(-1).view(torch.uint8).numpy(), dice)
    return nothing


def of_bytes(raw: np.ndarray, dice: random.Random) -> Undo:
    """Flip any bit of an array that the branch shares with the run: it has to be put back by hand."""
    at, bit = dice.randrange(len(raw)), np.uint8(1 << dice.randrange(8))
    raw[at] ^= bit

    def undo() -> None:
        raw[at] ^= bit

    return undo


def of_number(x: Any, dice: random.Random) -> Any:
    """A number or a text with one bit flipped."""
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        return x ^ (1 << dice.randrange(max(8, x.bit_length() + 1)))
    if isinstance(x, float):
        (word,) = struct.unpack("<q", struct.pack("<d", x))
        return struct.unpack("<d", struct.pack("<Q", (word ^ (1 << dice.randrange(64))) % 2**64))[0]
    at = dice.randrange(len(x))
    return x[:at] + chr(ord(x[at]) ^ (1 << dice.randrange(7))) + x[at + 1 :]


def nothing() -> None:
    pass


def lattice(name: str) -> Place:
    def place(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
        held = [s.integers(name) for s in traj.optimizer._slots if name in s.block.lattices]
        return of_tensor(dice.choice(held), dice) if held else None

    return place


def parameter(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    return of_tensor(dice.choice(list(traj.model.parameters())), dice)


def buffer(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    held = list(traj.model.buffers())
    return of_tensor(dice.choice(held), dice) if held else None


def copy_of_buffer(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    held = [x for x in traj.buffers.copies().values() if x is not None]
    return of_bytes(dice.choice(held).view(-1).view(torch.uint8).numpy(), dice) if held else None


def head(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    return of_tensor(dice.choice(traj.tape.lanes).heads, dice)


def word(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    held = [x for lanes in traj.tape for x in lanes.stack.chunks]
    if not held:
        return None
    chunk = dice.choices(held, weights=[len(x) for x in held])[0]
    return of_bytes(chunk.view(np.uint8), dice)


def exponent(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    block = dice.choice(traj.optimizer._slots).block
    chosen = dice.choice(list(block.lattices.values()))
    chosen.exponent = of_number(chosen.exponent, dice)
    return nothing


def count(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    slot = dice.choice(traj.optimizer._slots)
    slot.count = of_number(slot.count, dice)
    return nothing


def carried(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    held = traj.optimizer.carried
    if not held:
        return None
    name = dice.choice(sorted(held))
    held[name] = of_number(held[name], dice)
    return nothing


def bounds(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    lanes, name = dice.choice(traj.tape.lanes), dice.choice(["low", "high", "index", "borrowed"])
    setattr(lanes, name, of_number(getattr(lanes, name), dice))
    return nothing


def move(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    held = [lanes.moves for lanes in traj.tape if lanes.moves]
    if not held:
        return None
    moves = dice.choice(held)
    at, name = dice.randrange(len(moves)), dice.choice(["index", "emitted", "low", "high", "reserve"])
    moves[at] = replace(moves[at], **{name: of_number(getattr(moves[at], name), dice)})
    return nothing


def check(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    checks = traj.journal.checks
    at, raw = dice.randrange(len(checks)), None
    raw = np.array([checks[at]])
    of_bytes(raw.view(np.uint8), dice)
    checks[at] = int(raw[0])
    return nothing


def entry(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    """Anything in an entry of the journal: the kind is chosen first, so that rare ones have their turn."""
    entries = traj.journal.entries
    kinds = sorted({k for held in entries.values() for k in held})
    if not kinds:
        return None
    kind = dice.choice(kinds)
    step = dice.choice([step for step, held in entries.items() if kind in held])
    entries[step] = changed = copy.deepcopy(entries[step])
    leaves = list(_leaves(changed, kind))
    if not leaves:
        return None
    holder, key = dice.choice(leaves)
    if isinstance(holder[key], torch.Tensor):
        return of_tensor(holder[key], dice)
    holder[key] = of_number(holder[key], dice)
    return nothing


def _leaves(holder: Any, key: Any):
    value = holder[key]
    if isinstance(value, tuple):
        holder[key] = value = list(value)
    if isinstance(value, dict | list):
        for k in value if isinstance(value, dict) else range(len(value)):
            yield from _leaves(value, k)
    elif value is not None and value != "":
        yield holder, key


def settings(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    """The settings of the last step, as the optimizer holds them for undoing it."""
    opt = traj.optimizer
    opt._settings = copy.deepcopy(opt._settings)
    numbers = [(s, k) for s in opt._settings for k, v in s.items() if isinstance(v, float)]
    holder, key = dice.choice(numbers)
    holder[key] = of_number(holder[key], dice)
    return nothing


def steps_of_elements(dice: random.Random, traj: lo.Trajectory) -> Undo | None:
    traj.tape.element_steps = of_number(traj.tape.element_steps, dice)
    return nothing


PLACES: dict[str, Place] = {
    "q": lattice("q"),
    "p": lattice("p"),
    "m": lattice("m"),
    "v": lattice("v"),
    "parameter": parameter,
    "buffer": buffer,
    "copy of a buffer": copy_of_buffer,
    "head": head,
    "word": word,
    "exponent": exponent,
    "step count": count,
    "scalar carried": carried,
    "bounds of the tape": bounds,
    "move of the tape": move,
    "checksum in the journal": check,
    "entry of the journal": entry,
    "settings": settings,
    "parameter-steps": steps_of_elements,
}


# -- trials --------------------------------------------------------------------------------------------


class Memory:
    """Runs of all subjects, each at its turn, and what they were at step 0."""

    def __init__(self, names: list[str] | None = None):
        self.runs = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names or SUBJECTS:
                traj = make(name)
                start = everything(traj.seek(1).seek(0))  # with the settings of the first step in the param groups
                self.runs[name] = traj.seek(SUBJECTS[name][3]), start

    def trial(self, seed: int) -> tuple[str, str, str, str]:
        """Flip one bit: (subject, when, place, outcome), the outcome an error's name, "harmless" or "silent"."""
        dice = random.Random(seed)
        name = [*self.runs][seed % len(self.runs)]
        traj, start = self.runs[name]
        turn, when, before, undo = traj.step, dice.choice(WHEN), traj.digest(), None
        at = turn if when == WHEN[0] else dice.randrange(1, turn)
        with warnings.catch_warnings(), traj.branch():
            warnings.simplefilter("ignore")
            if when == WHEN[2]:
                traj.seek(at)
            done: list[tuple[str, Undo]] = []

            def harm(traj: lo.Trajectory) -> None:
                if traj.step == at and not done:
                    for place in dice.sample(sorted(PLACES), len(PLACES)):
                        undo = PLACES[place](dice, traj)
                        if undo is not None:
                            return done.append((place, undo))

            try:
                if when != WHEN[1]:
                    harm(traj)
                traj.seek(turn).seek(0, on_step=harm)
                wrong = differences(everything(traj), start)
                outcome = f"silent: {', '.join(sorted(wrong))}" if wrong else "harmless"
            except lo.LoschmidtError as error:
                outcome = type(error).__name__
            except Exception as error:
                outcome = f"raw {type(error).__name__}: {error}"
        place, undo = done[0]
        undo()
        if traj.digest() != before:
            raise RuntimeError(f"seed {seed}: the harness did not put {place} back")
        return name, when, place, outcome
