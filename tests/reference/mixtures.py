"""Random optimizers on random parameters: walk there and back, and compare every bit on the way with a hash of its own.

A mixture is a function of its seed. It holds one to three param groups (one perhaps added midway) of parameters of
mixed dtypes in any order, with sizes around the limit from which a block is deep (lowered in most of them), in any
layout, some frozen, some used twice; an optimizer of any kind, plain or composed; and steps of which some parameters
have no gradient, some are refused, and some are undone wrongly first. After every step each parameter must be the view
of its integers, and after every undo and every refusal all bits must be as recorded.
"""

import copy
import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

import loschmidt as lo
from loschmidt.exact import tape
from loschmidt.optim import flat

from .bits import flip, flip_word, raw

TRUE_LIMIT = 1 << 16
"""Elements from which a block is deep, where nobody has lowered that."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
INT32 = {"lattice": torch.int32, "resolution": 2.0**-24}
SHELL = {"delta_energy": 0.5}
KINDS = {
    "sgd": (lo.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd-dampened": (lo.optim.SGD, {"lr": 0.1, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.01}),
    "sgd-int32": (lo.optim.SGD, {"lr": 0.05, "momentum": 0.9} | INT32),
    "adam": (lo.optim.Adam, {"lr": 1e-3, "weight_decay": 0.1}),
    "adamw": (lo.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.1, "betas": (0.5, 0.6)}),
    "ecd": (lo.optim.ECD, {"lr": 0.05, "weight_decay": 1e-3} | SHELL),
    "ecd-friction": (lo.optim.ECD, {"lr": 0.05, "momentum": 0.9, "lattice": {"p": torch.int32}} | SHELL),
    "ecd-rescale": (lo.optim.ECD, {"lr": 0.1, "conserve": "rescale"} | SHELL),
    "ecd-decoupled": (lo.optim.ECD, {"lr": 0.05, "nu": 1e-3, "weight_decay": 0.2, "decoupled": True}),
    "bbi": (lo.optim.BBI, {"lr": 0.05, "weight_decay": 1e-3} | SHELL),
    "bbi-bouncing": (lo.optim.BBI, {"lr": 0.1, "bounces": 2, "bounce_every": 2, "patience": 2} | SHELL),
    "q1": (lo.optim.ECDq1, {"lr": 0.02, "eta": 50.0, "weight_decay": 1e-3}),
    "q1-per-tensor": (lo.optim.ECDq1, {"lr": 0.02, "eta": 50.0, "projection": "per-tensor"}),
    "leapfrog": (lo.optim.ECD, {"lr": 0.05, "integrator": "leapfrog"} | SHELL),
    "forest-ruth": (lo.optim.ECD, {"lr": 0.05, "integrator": "forest-ruth"} | SHELL),
    "turning": (lo.optim.ECD, {"lr": 0.05} | SHELL),
}
COMPOSED = {"leapfrog", "forest-ruth", "turning"}
NATIVE = {"sgd": 0.7, "leapfrog": 0.7, "ecd-rescale": 0.15, "adamw": 0.0}
"""The share of a kind that is run by compiled passes; at the true limit all are. Compiling takes time: of sgd and
leapfrog thirty passes are enough for hundreds of mixtures, of adamw four mixtures take as many."""
LOSS = 0.7
ENDS = (lo.InvalidSetting, lo.NonFinite, lo.LatticeOverflow)
"""What a random step may be refused with: one parameter has no direction to turn, a huge gradient does not fit."""


class Wrong(Exception):
    """What is not as it should be."""


def _draw(*key: int) -> np.random.Generator:
    return np.random.default_rng([0x313, *key])


class Mixture:
    """The mixture of a seed.

    Args:
        seed: of everything.
        damage: flip one bit at the turn, chosen by this seed; something must then be wrong.
    """

    def __init__(self, seed: int, damage: int | None = None):
        self.seed, self.damage, self.events = seed, damage, Counter(mixtures=1)
        draw = _draw(seed)
        true_limit = draw.random() < 0.01
        self.lanes = TRUE_LIMIT if true_limit else int(draw.integers(8, 33))
        self.kind = str(draw.choice([*KINDS]))
        chance = draw.random()
        self.kernels = "native" if self.kind in NATIVE and (true_limit or chance < NATIVE[self.kind]) else "eager"
        self.composed = self.kind in COMPOSED
        self.steps = 2 if true_limit else int(draw.choice([2, 3, 4], p=[0.7, 0.2, 0.1]))
        self.turns_at = int(draw.integers(1, self.steps)) if self.kind == "turning" else None
        names, groups = self._parameters(draw, true_limit)
        self.added_at = int(draw.integers(1, self.steps)) if len(groups) > 1 and draw.random() < 0.4 else None
        self.groups = [[names[i] for i in group] for group in groups]
        self.events.update(
            {
                "at the true limit": true_limit,
                self.kernels: 1,
                self.kind: 1,
                "mixed dtypes": len({p.dtype for p in self.model.parameters()}) > 1,
                "group added midway": self.added_at is not None,
            }
        )

    def _parameters(self, draw: np.random.Generator, true_limit: bool) -> tuple[list[str], list[list[int]]]:
        count, limit = int(draw.integers(1, 4 if true_limit else 6)), self.lanes
        groups = [[] for _ in range(draw.choice([1, 1, 2, 3]))]
        kinds = [DTYPES[k] for k in draw.integers(0, len(DTYPES), count)]
        sizes = [int(n) for n in draw.integers(0, int(1.2 * limit), count)]
        for i in range(count):
            groups[draw.integers(len(groups))].append(i)
        groups = [group for group in groups if group]
        for group in groups:  # some blocks end just at a limit
            block = [i for i in group if kinds[i] is kinds[group[-1]]]
            if draw.random() < 0.5:
                total = limit * int(draw.integers(1, 3)) + int(draw.integers(-1, 2))
                sizes[block[-1]] = max(0, total - sum(sizes[i] for i in block[:-1]))
        self.model, names = nn.Module(), []
        for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
            values = torch.from_numpy(draw.standard_normal(size))
            p = nn.Parameter(_laid_out(values, kind, draw, self.events), requires_grad=bool(draw.random() < 0.85))
            self.events["frozen"] |= not p.requires_grad
            names.append(f"p{i}")
            self.model.register_parameter(names[-1], p)
        self.twice = {f"p{i}" for i in range(count) if draw.random() < 0.2}  # tied: used at two places
        for name in self.twice:
            self.model.register_parameter(f"tied {name}", self.model.get_parameter(name))
        self.events["tied"] |= bool(self.twice)
        return names, groups

    # -- what a step is --------------------------------------------------------------------------------

    def named(self, number: int) -> list[tuple[str, nn.Parameter]]:
        """Parameters of a group; those used twice appear once, as in `named_parameters`."""
        return [(name, p) for name, p in self.model.named_parameters() if name in self.groups[number]]

    def set_gradients(self, step: int) -> float:
        """Those of a step at the present parameters: the same at every call; the loss."""
        draw, self.opt_step = _draw(self.seed, 1, step), step
        for number, names in enumerate(self.groups):
            joined = number + 1 < len(self.groups) or self.added_at is None or step >= self.added_at
            for name in names:
                p = self.model.get_parameter(name)
                values = torch.from_numpy(draw.standard_normal(p.shape)) * 2.0 ** draw.integers(-3, 4)
                present, how = draw.random() < 0.85, draw.random()
                if not joined or not p.requires_grad or not (present or self.composed):
                    p.grad = None
                    self.events["without a gradient"] |= joined and p.requires_grad
                    continue
                uses = 2 if name in self.twice else 1
                gradient = (uses * (values + p.detach() / 8)).to(p.dtype)
                if how < 0.1 and not self.composed:
                    gradient = gradient.mean().expand(p.shape)
                elif how < 0.2:
                    gradient = torch.stack([gradient, gradient], -1)[..., 0]
                p.grad = torch.zeros_like(gradient) if gradient.isnan().any() else gradient
        return LOSS

    def set_settings(self, step: int) -> None:
        """What a schedule would do: another lr at some steps, 0 at a few; time turned round."""
        draw = _draw(self.seed, 2, step)
        factor = float(draw.choice([1.0, 1.0, 0.5, 0.0], p=[0.4, 0.3, 0.25, 0.05]))
        for group in self.opt.param_groups:
            group["lr"] = KINDS[self.kind][1]["lr"] * factor
            if self.turns_at is not None:
                group["mirrored"] = step >= self.turns_at

    # -- the walk --------------------------------------------------------------------------------------

    def wrong(self) -> str | None:
        """Walk; what was wrong first, "" if nothing was. None if damage may have gone unseen: see `_flip`."""
        with _surroundings(self.lanes, self.kernels):
            first = len(self.groups) - (self.added_at is not None)
            kind, settings = KINDS[self.kind]
            groups = [{"params": self.named(i)} for i in range(first)]
            self.opt = kind(groups, **settings)
            self._note_blocks()
            self.states, self.as_added = [fingerprint(self.opt)], []
            try:
                self._forward(self.steps)
                if self.damage is not None and not self._flip(np.random.default_rng(self.damage)):
                    return None
                lowest = (self.added_at or 0) if self.composed else 0
                if self.steps > lowest and _draw(self.seed, 7).random() < 0.25:
                    self._back(int(_draw(self.seed, 3).integers(lowest, self.steps)))
                    self._forward(self.steps)
                self._back(0)
            except Wrong as error:
                return str(error)
            except lo.LoschmidtError as error:
                return f"{type(error).__name__}: {error}"
            return ""

    def _forward(self, until: int) -> None:
        while (step := self.opt.steps) < until:
            if step == self.added_at and not self.as_added:
                self.opt.add_param_group({"params": self.named(len(self.groups) - 1)})
                self.as_added = [fingerprint(self.opt)[-1]]
                self.states[step] = fingerprint(self.opt)
                self._note_blocks()
            self.set_settings(step)
            self._refused(step)
            loss = self.set_gradients(step)
            try:
                self.opt.step(lambda step=step: self.set_gradients(step)) if self.composed else self.opt.step(loss=loss)
            except ENDS:
                self._compare(fingerprint(self.opt), self.states[step], f"refused step {step}")
                refuse_other_views(self.opt)
                self.steps = step
                self.events["ended early"] = 1
                return
            self.events["coarsened"] |= "coarsened" in self.opt.journal.peek()[1]
            refuse_other_views(self.opt)
            now = fingerprint(self.opt)
            if len(self.states) == step + 1:
                self.states.append(now)
            self._compare(now, self.states[step + 1], f"step {step} taken again")
            self._reloaded(step)

    def _back(self, until: int) -> None:
        while (step := self.opt.steps - 1) >= until:
            if _draw(self.seed, 5, step).random() < 0.2:
                self._undone_wrongly(step)
            self.opt.unstep(lambda step=step: self.set_gradients(step))
            refuse_other_views(self.opt)
            self._compare(fingerprint(self.opt), self.states[step], f"step {step} undone")

    def _compare(self, now: list[str], recorded: list[str], what: str) -> None:
        """Groups that had not been added yet must be as they were added."""
        expected = recorded + self.as_added * (len(now) - len(recorded))
        if now != expected:
            raise Wrong(
                f"{what}: other bits in {[i - 1 for i, x in enumerate(now) if x != expected[i]]} (-1: no group)"
            )

    def _refused(self, step: int) -> None:
        """Now and then, try a step that must be refused."""
        draw, opt = _draw(self.seed, 4, step), self.opt
        slots = [s for s in opt._slots if s.stop > s.start]
        if draw.random() > 0.25 or not slots:
            return
        kind = str(draw.choice(["nan", "loss", "edit", "huge"]))
        slot = slots[draw.integers(len(slots))]
        place, bits = int(draw.integers(slot.stop - slot.start)), None

        def gradients() -> float:
            loss = self.set_gradients(step)
            grads = [s.parameter.grad for s in slots if s.parameter.grad is not None]
            if kind in ("nan", "huge") and grads:
                g = grads[place % len(grads)]
                g.copy_(g.contiguous()) if 0 not in g.stride() else None
                bad = g.contiguous().clone()
                bad.view(-1)[0] = math.nan if kind == "nan" else 1e30
                next(s.parameter for s in slots if s.parameter.grad is g).grad = bad
            return math.nan if kind == "loss" else loss

        loss = gradients()
        if kind == "edit":
            values = slot.parameter.detach().clone()
            with torch.no_grad():
                slot.parameter[np.unravel_index(place, slot.parameter.shape)] += 1
            bits = slot.parameter.detach().clone()
        try:
            opt.step(gradients) if self.composed else opt.step(loss=loss)
        except lo.LoschmidtError as error:
            if isinstance(error, lo.errors.Inconsistent):
                raise
            self.events[f"refused: {kind}"] = 1
        else:
            if kind in ("loss", "edit") and any(s.parameter.grad is not None for s in slots):
                raise Wrong(f"step {step} was taken with {kind}") from None
            opt.unstep(gradients)
        if bits is not None:
            if not torch.equal(bits, slot.parameter):
                raise Wrong(f"refused step {step} changed an edited parameter")
            with torch.no_grad():
                slot.parameter.copy_(values)
        self.set_settings(step)
        self._compare(fingerprint(opt), self.states[step], f"refused step {step} ({kind})")
        refuse_other_views(opt)

    def _undone_wrongly(self, step: int) -> None:
        """Try to undo a step with another gradient."""
        active = [s for s in map(self.opt._slots.__getitem__, self.opt._active) if s.stop > s.start]
        if not active:
            return

        def other() -> float:
            loss = self.set_gradients(step)
            active[-1].parameter.grad = active[-1].parameter.grad + 1
            return loss

        try:
            self.opt.unstep(other)
            raise Wrong(f"step {step} was undone with another gradient")
        except lo.ReplayMismatch:
            self.events["undone wrongly"] = 1
        self._compare(fingerprint(self.opt), self.states[step + 1], f"refused undoing of step {step}")
        refuse_other_views(self.opt)

    def _reloaded(self, step: int) -> None:
        """Now and then, go on from a state_dict, or with a copy."""
        chance = _draw(self.seed, 6, step).random()
        if chance > 0.12:
            return
        if chance > 0.04:
            self.opt.load_state_dict(self.opt.state_dict())
        else:
            self.model, self.opt = copy.deepcopy((self.model, self.opt))
        self.events["reloaded or copied"] = 1
        self._compare(fingerprint(self.opt), self.states[step + 1], f"reloaded after step {step}")

    def _note_blocks(self) -> None:
        for block, slots in flat.by_block(self.opt._slots):
            apart = any(b.index - a.index > 1 for a, b in itertools.pairwise(slots))
            self.events["deep blocks"] |= block.deep
            self.events["deep blocks with another dtype between"] |= block.deep and apart

    def _flip(self, draw: np.random.Generator) -> bool:
        """Flip one bit. False where it may go unseen: words that the tape took from its reserve are thrown away."""
        slots = [s for s in self.opt._slots if s.stop > s.start]
        lanes = [lane for lane in self.opt.tape if lane.heads.numel()]
        if not slots or not self.opt.steps:
            return False
        slot, lane = slots[draw.integers(len(slots))], lanes[draw.integers(len(lanes))]
        names = [*slot.block.lattices]
        place = str(draw.choice([*names, "head", "word", "parameter", "check"]))
        if place == "word" and not lane.words:
            place = "head"
        if place in ("word", "head") and lane.borrowed:
            return False
        if place == "head":
            flip(lane.heads, int(draw.integers(lane.heads.numel())), int(draw.integers(30)))
        elif place == "word":
            flip_word(lane, int(draw.integers(lane.words)))
        elif place == "check":
            self._flip_check(1 << int(draw.integers(60)))
        elif place == "parameter":
            bits = slot.parameter.detach().clone(memory_format=torch.contiguous_format).view(-1)
            words = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
            words[draw.integers(len(words))] ^= 1 << int(draw.integers(8 * bits.element_size() - 1))
            with torch.no_grad():
                slot.parameter.copy_(bits.view(slot.parameter.shape))
        else:
            n = slot.integers(place).view(-1)
            flip(n, int(draw.integers(len(n))), int(draw.integers(28)))
        self.events[f"flipped: {place}"] = 1
        return True

    def _flip_check(self, bit: int) -> None:
        """In the last step's checksum of its gradient; a composed step has one for each kick."""
        journal = self.opt.journal
        entry = journal.entries.get(journal.steps - 1, {})
        if "parts" not in entry:
            journal.checks[-1] ^= bit
            return
        parts = [part | {"check": part["check"] ^ bit} if "check" in part else part for part in entry["parts"]]
        journal.entries[journal.steps - 1] = entry | {"parts": parts}


def _laid_out(values: torch.Tensor, kind: torch.dtype, draw: np.random.Generator, events: Counter) -> torch.Tensor:
    """The values in a tensor of that dtype and of any shape and layout."""
    x, n, how = values.to(kind), len(values), int(draw.integers(6))
    if how == 1 and n % 2 == 0:
        x = x.view(n // 2, 2).t()
    elif how == 2 and n % 4 == 0:
        x = x.view(2, n // 4, 2, 1).to(memory_format=torch.channels_last)
    elif how == 3:
        x = torch.stack([x, x], 1)[:, 0]
    elif how == 4:
        x = torch.cat([torch.zeros(3, dtype=kind), x])[3:]  # not where memory begins
    events["not contiguous"] |= not x.is_contiguous()
    return x


@contextmanager
def _surroundings(lanes: int, kernels: str):
    """So many lanes, and these kernels."""
    most, mode = tape.MAX_LANES, os.environ.get("LOSCHMIDT_KERNELS")
    tape.MAX_LANES, os.environ["LOSCHMIDT_KERNELS"] = lanes, kernels
    try:
        yield
    finally:
        tape.MAX_LANES = most
        os.environ.pop("LOSCHMIDT_KERNELS")
        if mode is not None:
            os.environ["LOSCHMIDT_KERNELS"] = mode


def fingerprint(opt) -> list[str]:
    """SHA-256 of what belongs to no group, and of each group: integers, exponents, counts, tape, parameters.

    Of the journal, but for settings: steps taken again with one group more name those of one group more.
    """
    entries = [
        (step, sorted(pair for pair in x.items() if pair[0] != "settings"))
        for step, x in sorted(opt.journal.entries.items())
    ]
    journal = [opt.steps, opt.journal.checks.tolist(), [x for x in entries if x[1]]]
    about = json.dumps([journal, {k: v.hex() for k, v in sorted(opt.carried.items())}, opt.tape.element_steps])
    out = [hashlib.sha256(about.encode())] + [hashlib.sha256() for _ in opt.param_groups]
    for block, slots in flat.by_block(opt._slots):
        h, about, tensors = out[1 + slots[0].group], [], []
        for name, lattice in sorted(block.lattices.items()):
            about += [name, lattice.exponent]
            tensors.append(lattice.n)
        for lane in block.tapes:
            held, meta = lane.state()
            about.append(meta)
            tensors += [x for _, x in sorted(held.items())]
        for s in slots:
            about += [s.count, int(s.state["step"]), str(s.parameter.dtype), list(s.parameter.shape)]
            tensors.append(s.parameter)
        h.update(json.dumps(about).encode())
        for x in tensors:
            h.update(raw(x).numpy())
    return [h.hexdigest() for h in out]


def refuse_other_views(opt) -> None:
    """Raise Wrong unless each parameter is the view of its integers, bit for bit."""
    for s in opt._slots:
        n, e = opt.state[s.parameter]["q"], round(-math.log2(opt.resolution))
        view = (n.to(torch.float64) * 2.0**-e).to(s.parameter.dtype)
        if not torch.equal(raw(view), raw(s.parameter)):
            raise Wrong(f"{s.name} is not the view of its integers after step {opt.steps - 1}")


def check(seeds: Iterable[int]) -> tuple[list[tuple[int, str]], Counter]:
    """Walk mixtures: what was wrong with which, and what happened in how many."""
    failed, events = [], Counter()
    for seed in seeds:
        mixture = Mixture(seed)
        if what := mixture.wrong():
            failed.append((seed, what))
        events += Counter({k: int(v) for k, v in mixture.events.items()})
    return failed, events
