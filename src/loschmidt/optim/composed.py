"""Steps of several kicks and drifts: palindromic compositions, and steps mirrored in time (`dynamics.compositions`).

Each kick has a gradient of its own, found by calling the closure again. The journal holds a checksum for each, and on
the way back each is compared before its kick is undone. The state is copied before a step, and put back if anything
is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import interrupt
from ..dynamics.compositions import COMPOSITIONS, VERLET, Step
from ..errors import InvalidSetting
from ..exact import World, look, run, run_back
from . import flat, losses, record, serial
from .mismatch import other_gradient, refuse_other_gradients
from .settings import Settings, present

if TYPE_CHECKING:
    from .base import Closure, ReversibleOptimizer
    from .control import Trial

AUTO = "auto"
"""The lr that is chosen at each step, see `control`."""
FLIPPED = "flipped"
"""Name of the record that momenta were flipped before the step."""


def parts_of(settings: Settings) -> Step:
    """The kicks and drifts of a step with these settings."""
    first = settings[0] if settings else {}
    if first.get("lr") == AUTO:
        return VERLET
    return COMPOSITIONS[first.get("integrator", "euler")].step(first.get("mirrored", False))


def starting_with(settings: Settings, carried: Mapping[str, float]) -> Step:
    """The kicks and drifts of the step to be taken. A drift needs the momentum: a start with one is made before it.

    That is a kick of no length at the start's gradient; without it the path would begin half a drift behind.
    """
    parts = parts_of(settings)
    starts = "shell" not in carried and bool(settings) and settings[0].get("delta_energy", 0) > 0
    return (("kick", 0.0), *parts) if starts and parts[0][0] == "drift" else parts


def as_taken(settings: Settings, done: Sequence[Any]) -> Step:
    """The kicks and drifts of a step that was taken, given what each of them left in the journal."""
    parts = parts_of(settings)
    return (("kick", 0.0), *parts) if len(done) > len(parts) else parts


def kind_of(settings: Settings) -> tuple[str, str]:
    """What makes steps with these settings composed ones, and what to do where that is in the way."""
    first = settings[0] if settings else {}
    if first.get("lr") == AUTO:
        return 'lr="auto"', "give lr a number"
    if (name := first.get("integrator", "euler")) != "euler":
        return f'integrator="{name}"', 'use integrator="euler"'
    return "a step in reversed time", "undo steps instead (seek, unstep)"


def begins_with_kick(settings: Settings) -> bool:
    """Whether a step's first gradient, and so its loss and energy, are those of the state that it begins at."""
    return parts_of(settings)[0][0] == "kick"


def is_composed(optimizer: "ReversibleOptimizer", settings: Settings) -> bool:
    """Whether a step with these settings is more than kick, then drift."""
    return parts_of(settings) != COMPOSITIONS["euler"].step() or _turns(optimizer, settings)


def _turns(optimizer: "ReversibleOptimizer", settings: Settings) -> bool:
    """Whether time turns round before this step."""
    before = optimizer._settings or [{}]
    return bool(settings) and settings[0].get("mirrored", False) != before[0].get("mirrored", False)


def scaled(settings: Settings, share: float, lr: float | None) -> Settings:
    """Settings of a part of a step: its share of each lr, or of the one that was chosen (None: not yet)."""
    chosen = [lr if s["lr"] == AUTO else s["lr"] for s in settings]
    return [s if x is None else s | {"lr": x * share} for s, x in zip(settings, chosen, strict=True)]


def advance(
    optimizer: "ReversibleOptimizer",
    closure: "Closure | None",
    section: interrupt.critical,
    trial: "Trial | None" = None,
) -> Any:
    """Take a step; what the closure gave at its first call.

    Args:
        optimizer: that takes it.
        closure: as in `step`.
        section: which Ctrl-C does not interrupt, but in the closure.
        trial: chooses lr="auto", and judges what comes of it.
    """
    settings = present(optimizer)
    if closure is None:
        raise InvalidSetting(
            f"{kind_of(settings)[0]} evaluates gradients inside the step, and was given no closure to call.",
            "pass one: step(closure).",
        )
    serial.refuse_other_state(optimizer)
    flat.check_unedited(optimizer._slots)
    mine = [s for s in optimizer._slots if s.parameter.requires_grad]
    keep, first, check = _keep(optimizer), None, 0
    carried, records, energy, lr = dict(optimizer.carried), [], None, None
    turns = _turns(optimizer, settings)
    try:
        if turns:
            _flip(mine)
        for number, (kind, share) in enumerate(starting_with(settings, carried)):
            part = scaled(settings, share, lr)
            world = flat.world_of(mine, part, World([], None, optimizer.steps, optimizer.seed, carried=carried), 1)
            flat.locate(mine, world)
            if kind == "drift":
                run(optimizer.drifts(), world, len(optimizer.kicks()))
            else:
                loss = _gradient(optimizer, closure, section, world, mine, settings)
                first = loss if first is None else first
                look(world)
                check = world.checksum(optimizer.needs_loss)
                optimizer.prepare(world)
                if number == 0 and begins_with_kick(settings):  # parameters and momenta are those at its start
                    energy = optimizer.energy
                    if trial is not None and world.parts:
                        lr = trial.begin(world)
                        for p in world.parts:
                            p.settings = p.settings | {"lr": lr * share}
                run(optimizer.kicks(), world)
            carried |= {k: v for k, v in world.scalars.items() if k in optimizer.carries}
            records.append({"check": check, "scalars": world.scalars})
            flat.show(mine, world)
        if trial is not None and world.parts:
            trial.end(world, energy)
        optimizer.energy = energy
        world = World([], None, optimizer.steps, optimizer.seed, carried=carried | ({"lr": lr} if lr else {}))
        world.scalars = {k: v for r in records for k, v in r["scalars"].items() if k in optimizer.carries}
        world.scalars |= {FLIPPED: 1.0} if turns else {}
        active = [s.index for s in mine]
        record.push(optimizer, world, settings, active, check, [{k: v for k, v in r.items() if v} for r in records])
    except BaseException:
        keep()
        raise
    return first


def go_back(optimizer: "ReversibleOptimizer", closure: "Closure", section: interrupt.critical) -> Any:
    """Undo the last step, a composed one; what the closure gave at its last call, where it was called first."""
    serial.refuse_other_state(optimizer)
    flat.check_unedited(optimizer._slots)
    entry, active = optimizer.journal.peek()[1], optimizer._active
    step, settings = optimizer.steps - 1, optimizer._settings
    mine, keep, loss = [optimizer._slots[i] for i in active], _keep(optimizer), None
    carried = optimizer.carried
    try:
        for (kind, share), done in reversed(list(zip(as_taken(settings, entry["parts"]), entry["parts"], strict=True))):
            part = scaled(settings, share, carried.get("lr"))
            world = flat.world_of(mine, part, World([], None, step, optimizer.seed, carried=carried), 0)
            world.scalars = dict(done.get("scalars", {}))
            if kind == "drift":
                flat.locate(mine, world)
                run_back(optimizer.drifts(), world, len(optimizer.kicks()))
            else:
                rng, visits = torch.get_rng_state(), optimizer.passes.visits
                loss = _gradient(optimizer, closure, section, world, mine, settings)
                drew = optimizer.passes.visits == visits and not torch.equal(rng, torch.get_rng_state())
                refuse_other_gradients(optimizer._slots, active, step)
                look(world)
                known = step >= optimizer.journal.verified_from
                if known and world.checksum(optimizer.needs_loss) != done.get("check", 0):
                    raise other_gradient(optimizer, step, drew, loss)
                run_back(optimizer.kicks(), world, 0)
            flat.show(mine, world)
        if FLIPPED in entry.get("scalars", {}):
            _flip(mine)
    except BaseException:
        keep()
        raise
    finally:
        optimizer.passes.undoing = False
        flat.release(mine)
    optimizer.passes.done()
    record.pop(optimizer, active)
    return loss


def _keep(optimizer: "ReversibleOptimizer") -> Callable[[], None]:
    """Copy the integers of state and tape; what puts them back."""
    blocks = [block for block, _ in flat.by_block(optimizer._slots)]
    lattices = [(x, x.n.clone(), x.e.copy(), list(x.logs), x.pushed) for b in blocks for x in b.lattices.values()]
    stacks = [(x, x.snapshot()) for x in optimizer.tape]
    energy = optimizer.energy

    def put_back() -> None:
        optimizer.energy = energy
        for lattice, n, e, logs, pushed in lattices:
            lattice.n.copy_(n)
            lattice.e[:], lattice.logs[:], lattice.pushed = e, logs, pushed
            lattice.replaced()
        for stack, held in stacks:
            stack.restore(held)
        flat.write(optimizer._slots)
        optimizer.passes.give_up()

    return put_back


def _gradient(
    optimizer: "ReversibleOptimizer",
    closure: "Closure",
    section: interrupt.critical,
    world: World,
    mine: list[flat.Slot],
    settings: Settings,
) -> Any:
    """Call the closure, and lay its gradients out for the world's parts."""
    optimizer.zero_grad()
    optimizer.passes.undoing = world.step < optimizer.steps
    with torch.enable_grad(), section.interruptible():
        loss = closure()
    if optimizer.passes.before or optimizer.passes.buffers.changed():
        kind, plain = kind_of(settings)
        raise InvalidSetting(
            f"the forward pass changes buffers of the model (BatchNorm in train mode?); {kind} does several a step.",
            f"put those modules into eval mode, or {plain}.",
        )
    if mine and loss is None and all(s.parameter.grad is None for s in mine):
        kind, plain = kind_of(settings)
        raise InvalidSetting(
            f"at step {world.step} there is no loss (an empty batch?), and with {kind} each step needs one.",
            f"leave steps without a batch out, or {plain}.",
        )
    for s in mine:
        if s.parameter.grad is None:
            kind, plain = kind_of(settings)
            raise InvalidSetting(
                f"{s.name} has no gradient, and with {kind} every parameter that requires one must.",
                f"freeze it (requires_grad_(False)) and construct the optimizer without it, or {plain}.",
            )
    if world.step == optimizer.steps:
        losses.refuse_part_of_loss(optimizer)
    world.loss = losses.value_of(optimizer, loss, required=bool(mine))
    flat.gather(mine, world)
    return loss


def _flip(mine: list[flat.Slot]) -> None:
    """Momenta to their negatives; its own inverse."""
    for s in mine:
        s.integers("p").neg_()
    for block, _ in flat.by_block(mine):
        block.lattices["p"].replaced()
