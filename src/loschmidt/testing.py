"""`assert_reversible`: whether a run of your own comes back bit for bit, and whether the check itself could fail.

For tests of models, losses, batch sources and optimizers. It needs no test framework.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .errors import InvalidSetting, LoschmidtError, NotReversible
from .exact import Stack, digest
from .trajectory import Trajectory

Bits = dict[str, str]
"""A digest of each thing that a run is made of, by name."""


def assert_reversible(make: Callable[[], Any], steps: int) -> None:
    """Walk a run forward, back and forward again, and compare every bit at every step; then damage it.

    After each step every parameter must be the float view of its integers. After each undo, integers, step counts,
    tape, parameters and buffers must be what they were at that step on the way out, and after each step taken again
    what they were the first time. Then single bits are flipped at the turn (in each lattice, in the tape's bits,
    in a parameter, in the checksum of a gradient), one at a time, and one step is undone: each must be refused
    or lead to other bits, or else the comparison above would have proven nothing.

    Guarantees: what passes came back exactly, over these steps, on this machine. Breaks: nothing is said of steps
    that were not taken; take so many that schedules, new epochs and modes of the model are among them.

    Args:
        make: what makes the run, called once: a `Trajectory`, or a tuple of its arguments (model, opt, loss, data,
            ...). If it has a folder, the run is committed to it at the end of each leg, as in any seek.
        steps: how many to take, at least 1.

    Raises:
        NotReversible: naming the step and what differs there; or saying that the run did not move, or which flipped
            bit was not noticed.
        LoschmidtError: the run itself was refused (`ReplayMismatch`, `Nondeterministic`, ...).

    Example:
        >>> import torch, loschmidt as lo
        >>> def make():
        ...     torch.manual_seed(0)
        ...     model, x = torch.nn.Linear(3, 1), torch.randn(32, 3)
        ...     opt = lo.optim.AdamW(model.parameters(), lr=1e-2)
        ...     loss = lambda model, x: (model(x) - x.sum(1, keepdim=True)).square().mean()
        ...     return model, opt, loss, lo.data.Schedule(x, batch_size=8)
        >>> lo.testing.assert_reversible(make, 20)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidSetting(f"steps={steps!r}: nothing would be taken.", "pass a whole number of at least 1.")
    traj = _made(make)
    first, recorded = traj.step, {traj.step: bits_of(traj)}
    last = first + steps

    def look(traj: Trajectory) -> None:
        traj.optimizer.check_shown()
        now = bits_of(traj)
        refuse_other(recorded.setdefault(traj.step, now), now, f"at step {traj.step}")

    traj.seek(last, on_step=look)
    if not any(name.endswith("/q") for name in _differing(recorded[first], recorded[last])):
        raise NotReversible(
            f"no parameter moved in {steps} steps from step {first}, so that coming back proves nothing.",
            "take more steps, or raise lr.",
        )
    traj.seek(first, on_step=look)
    traj.seek(last, on_step=look)
    for what in places(traj):
        if not _noticed(traj, what, recorded):
            raise NotReversible(
                f"one flipped bit of {what} was not noticed: step {last - 1} was undone, with the same bits as before.",
                "report it, with the model and the optimizer; nothing that came back here can be relied on.",
            )
    refuse_other(recorded[last], bits_of(traj), "after the damage was mended")


def _made(make: Callable[[], Any]) -> Trajectory:
    made = make()
    if isinstance(made, Trajectory):
        return made
    if isinstance(made, tuple) and len(made) >= 4:
        return Trajectory(*made)
    raise InvalidSetting(
        f"make() gave a {type(made).__name__}.", "let it return a Trajectory, or a tuple (model, opt, loss, data)."
    )


def bits_of(traj: Trajectory) -> Bits:
    """A digest of each part of a run's state: integers, counts, exponents, tape, parameters and buffers, by name."""
    opt, out = traj.optimizer, {}
    for s in opt._slots:
        out[f"{s.name}/count"] = digest([s.count])
        out[f"{s.name}/weights"] = digest([s.parameter])
        for name, lattice in s.block.lattices.items():
            out[f"{s.name}/{name}"] = digest([torch.from_numpy(lattice.e[slice(*s.rows_at)]), *lattice.logs, s.integers(name)])
    out |= {f"tape {i}": stack.digest() for i, stack in enumerate(opt.tape)}
    out |= {f"buffer {k}": digest([b]) for k, (b, _) in traj.buffers.snapshot().items() if b is not None}
    out["scalars"] = digest([opt.steps, *(f"{k}={v.hex()}" for k, v in sorted(opt.carried.items()))])
    return out


def _differing(a: Bits, b: Bits) -> list[str]:
    return [name for name in a | b if a.get(name) != b.get(name)]


def refuse_other(expected: Bits, found: Bits, where: str) -> None:
    """Raise NotReversible, naming what differs."""
    if wrong := _differing(expected, found):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise NotReversible(
            f"{where} the bits of {', '.join(wrong[:3])}{more} are not those that were there before.",
            "look for what changes them besides step and unstep (a hook, a second optimizer, code that edits weights).",
        )


def places(traj: Trajectory) -> Iterator[str]:
    """Where a bit can be flipped in this run, see `flip`."""
    opt = traj.optimizer
    largest = max(opt._slots, key=lambda s: s.stop - s.start)
    yield from largest.block.lattices
    if any(len(stack.planes) for stack in opt.tape):
        yield "the tape's bits"
    yield "a parameter"
    yield "a checksum"


def flip(traj: Trajectory, what: str) -> None:
    """Flip one bit: of a lattice by its name, or one of the other `places`."""
    opt = traj.optimizer
    largest = max(opt._slots, key=lambda s: s.stop - s.start)
    if what == "the tape's bits":
        _flip_bit(next(stack for stack in opt.tape if len(stack.planes)))
    elif what == "a parameter":
        bits = largest.parameter.detach().reshape(-1)[:1].clone()
        bits.view(torch.uint8)[0] ^= 1
        with torch.no_grad():
            largest.parameter[(0,) * largest.parameter.dim()] = bits[0]
    elif what == "a checksum":
        entry = opt.journal.entries.get(opt.steps - 1, {})
        opt.journal.checks[-1] ^= 1
        if "parts" in entry:  # a composed step has one for each kick
            parts = [p | {"check": p["check"] ^ 1} if "check" in p else p for p in entry["parts"]]
            opt.journal.entries[opt.steps - 1] = entry | {"parts": parts}
    else:
        largest.integers(what).view(-1)[0] ^= 1


def _flip_bit(stack: Stack) -> None:
    planes = stack.planes.since(0)
    planes[-1] ^= np.uint8(1)
    stack.planes.settle([planes])


def _noticed(traj: Trajectory, what: str, recorded: dict[int, Bits]) -> bool:
    """Whether a flipped bit stops the undoing of a step, or shows after it."""
    with traj.branch():
        to = traj.step - 1
        flip(traj, what)
        try:
            traj.seek(to)
        except LoschmidtError:
            return True
        return bool(_differing(recorded[to], bits_of(traj)))
