"""`ReversibleOptimizer`: torch.optim's surface, with `step` and `unstep` derived from a program of ops."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch

from .. import exact, interrupt
from ..errors import InvalidSetting, OutOfReach
from ..exact import Journal, Op, Tape, World, digest, look, lost_share, run, run_back
from . import composed, flat, groups, losses, processes, record, serial
from .integers import LatticeTypes, integer_types
from .mismatch import other_gradient, refuse_other_buffers, refuse_other_gradients, warn_below_resolution
from .replay import Passes
from .schedulers import Schedulers
from .settings import Settings, present, refuse_options, require_number

Closure = Callable[[], Any]

_CHECK_RESOLUTION_EVERY = 500


class ReversibleOptimizer(torch.optim.Optimizer):
    """Base of all optimizers here. A subclass gives two lists of ops and the names of its lattices.

    The state is integers; parameters are a float view of the lattice "q", rewritten after each step.
    `unstep` undoes the last step and restores every bit of parameters, state and tape.

    Guarantees: exact, if the closure given to `unstep` repeats the step's gradient bit for bit. That is
    checked before anything is undone for good: each step leaves a 64-bit checksum of its gradient.
    Breaks: nondeterministic kernels, another batch, weights edited in between (all noticed, and refused).

    Attributes:
        tape: remainders; `tape.bits`, `tape.bits_per_parameter_step`.
        journal: everything else that going back needs; `journal.bytes`.
        passes: what the forward passes of the step in progress did to buffers (see `replay`).
        carried: scalars that live longer than a step (ECD's energy shell, the lowest loss so far), by name.
        seed: key of random draws (scattering, `replay`, the tape's reserve).
        integer_types: dtype of each lattice's integers, by name.
        schedulers: those that are undone with the steps, see `undo_also`.
        backward: how many backward passes went into the gradients, if a step reads the loss.
        accumulates: set it to True where steps have several backward passes and are given the loss of all of them.
    """

    lattices: ClassVar[dict[str, int]] = {}
    """Names of the state besides "q", and how many bits of room their rows have above a first update, where units are
    by row."""
    needs_loss: ClassVar[bool] = False
    """Whether a step reads the value of the loss."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Settings that must be the same in all param groups."""
    carries: ClassVar[tuple[str, ...]] = ()
    """Scalars of a step that stay known afterwards, in `carried`, until that step is undone."""
    accumulates: bool = False
    registry: ClassVar[dict[str, type["ReversibleOptimizer"]]] = {}
    """Subclasses by name, from which `Trajectory.load` rebuilds an optimizer."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        ReversibleOptimizer.registry[cls.__name__] = cls

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        resolution: float | None = None,
        lattice: LatticeTypes = torch.int32,
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ):
        refuse_options(type(self).__name__, options or {}, defaults)
        self.integer_types = integer_types(lattice, ["q", *self.lattices])
        self.resolution, self.seed = resolution, seed
        e = None if resolution is None else exact.exponent_of(resolution)
        spare = {"q": 3} | self.lattices
        self.choices = {k: flat.Choice(dtype, e, spare[k]) for k, dtype in self.integer_types.items()}
        self.tape, self.journal, self.passes = Tape(), Journal(), Passes()
        self.backward, self.schedulers, self._agreed = losses.BackwardPasses(), Schedulers(), False
        self.carried: dict[str, float] = {}
        self._slots: list[flat.Slot] = []
        self._settings: Settings | None = None  # of the last step; the journal has the ones before
        self._active: list[int] | None = None  # slots that took part in the last step
        self._warned: set[str] = set()
        super().__init__(params, defaults)

    # -- what a subclass says ------------------------------------------------------------------------

    def kicks(self) -> Sequence[Op]:
        """Ops that move momenta while the parameters stand still."""
        raise TypeError(f"{type(self).__name__} does not define kicks()")

    def drifts(self) -> Sequence[Op]:
        """Ops that move the parameters; they may not read the gradient or the loss."""
        raise TypeError(f"{type(self).__name__} does not define drifts()")

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise InvalidSetting if a param group's settings have no inverse or make no sense."""
        require_number(settings, "lr")
        require_number(settings, "weight_decay")

    def prepare(self, world: World) -> None:
        """Look at a step before its first op, going forward: refuse it, or note scalars. Changes no state."""

    def conclude(self, world: World) -> dict[str, float]:
        """New values for `carried` that a step taken leaves; what they replace is recorded, and comes back with it."""
        return {}

    def evaluates_inside(self, settings: Settings) -> Callable[..., Any] | None:
        """What takes a step with these settings, if that calls the closure by itself."""
        return composed.advance if composed.is_composed(self, settings) else None

    # -- stepping ------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken and not undone."""
        return self.journal.steps

    def step(self, closure: Closure | None = None, *, loss: torch.Tensor | float | None = None) -> Any:
        """Take one step from the gradients in `.grad`.

        Ctrl-C takes effect in the closure, or after the step.

        Args:
            closure: clears the gradients, computes the loss, calls backward, returns the loss.
            loss: the loss that the gradients belong to, if there is no closure (ECD needs one of the two).

        Returns:
            The loss, if given or computed.

        Raises:
            NonFinite, LossBelowF0, LatticeOverflow, EditedOutside, InvalidSetting: nothing was changed, and
                buffers that passes inside `replay` changed are put back.
        """
        with interrupt.critical() as section, torch.no_grad():
            try:
                processes.agree(self, section)
                settings = present(self)
                inside = self.evaluates_inside(settings)
                if inside is not None:
                    return inside(self, closure, section)
                if closure is not None:
                    with torch.enable_grad(), section.interruptible():
                        loss = closure()
                    settings = present(self)
                self._advance(loss, settings)
            except BaseException:
                self.passes.give_up()
                raise
            finally:
                flat.release(self._slots)
        return loss

    def _advance(self, loss: Any, settings: Settings) -> None:
        serial.refuse_other_state(self)
        active = [s.index for s in self._slots if s.parameter.grad is not None]
        mine = [self._slots[i] for i in active]
        world = flat.world_of(mine, settings, World([], None, self.steps, self.seed, carried=self.carried), counting=1)
        flat.check_unedited([s for s in self._slots if s.parameter.grad is None])
        world.loss = losses.value_of(self, loss, required=bool(active))
        flat.gather(mine, world)
        self.prepare(world)
        kicks, drifts, lost = self.kicks(), self.drifts(), (0.0, "")
        looking = world.step % _CHECK_RESOLUTION_EVERY == 1
        if looking:
            lost = lost_share(kicks, world)
        run([*kicks, *drifts], world)
        try:
            look(world)
            flat.show(mine, world)
        except BaseException:
            run_back(drifts, world, len(kicks))
            run_back(kicks, world)
            raise
        check = world.checksum(self.needs_loss)
        record.push(self, world, settings, active, check)
        if looking:  # last: a filter may turn warnings into errors
            warn_below_resolution(self, world, *max(lost, lost_share(drifts, world)))

    def unstep(self, closure: Closure) -> Any:
        """Undo the last step: parameters, state and tape are what they were before it, bit for bit.

        The settings of the param groups become those of the step undone, and `.grad` its gradients.
        Ctrl-C takes effect in the closure (then the step stands as before the call), or after the step is undone.

        Args:
            closure: repeats that step's loss, backward, accumulation and clipping at the restored parameters,
                inside `with lo.replay(opt):` if the model has dropout or BatchNorm, and returns the loss.
                Gradients are cleared before it is called.

        Returns:
            What the closure returned.

        Raises:
            OutOfReach: there is no step to undo.
            ReplayMismatch: the closure's gradient is not the step's. The step stands as before the call.
            EditedOutside, InvalidSetting: parameters or the state were edited, or a scheduler of torch.optim was left
                out (`undo_also`). Nothing was changed.
            NonFinite, LatticeOverflow: only after `adopt`, on a path that was never recorded. As before the call.
        """
        if self.steps == self.journal.first:
            raise OutOfReach(
                f"there is no step to undo: this is step {self.steps}, where the record begins.", "take a step first."
            )
        self.schedulers.refuse_unknown(self, self._settings)
        with interrupt.critical() as section, torch.no_grad():
            if "parts" in self.journal.peek()[1]:
                return composed.go_back(self, closure, section)
            return self._go_back(closure, section)

    def _go_back(self, closure: Closure, section: interrupt.critical) -> Any:
        serial.refuse_other_state(self)
        check, entry = self.journal.peek()
        settings, active, step = self._settings, self._active, self.steps - 1
        mine = [self._slots[i] for i in active]
        world = flat.world_of(mine, settings, World([], None, step, self.seed, carried=self.carried), counting=0)
        flat.check_unedited([s for s in self._slots if s.index not in set(active)])
        flat.locate(mine, world)
        kicks, drifts = self.kicks(), self.drifts()
        world.scalars = dict(entry.get("scalars", {}))
        passes, buffers, recorded = self.passes, self.passes.buffers, entry.get("buffers", {})
        buffers.changed()
        after = buffers.copies()
        run_back(drifts, world, len(kicks))
        try:
            flat.show(mine, world)
            buffers.put(passes.done())  # of passes that no step followed
            buffers.expected = buffers.put(recorded)
            rng, passes.undoing = torch.get_rng_state(), True
            self.zero_grad()
            with torch.enable_grad(), buffers.watching(), section.interruptible():
                loss = closure()
            drew = passes.visits == 0 and not torch.equal(rng, torch.get_rng_state())
            world.loss = losses.value_of(self, loss, required=bool(active))
            passes.note(buffers.changed())
            refuse_other_gradients(self._slots, active, step)
            flat.gather(mine, world)
            look(world)
            if step >= self.journal.verified_from and world.checksum(self.needs_loss) != check:
                raise other_gradient(self, step, drew, loss)
            refuse_other_buffers(passes, recorded, step)
            run_back(kicks, world)
        except BaseException:
            passes.note(buffers.changed())
            buffers.put(passes.done() | buffers.found | after)
            flat.write(mine)  # whatever the closure did to them
            flat.locate(mine, world)
            run(drifts, world, len(kicks))
            flat.write(mine)
            raise
        finally:
            passes.undoing, buffers.expected, buffers.found = False, {}, {}
            flat.release(mine)
        buffers.put(passes.done() | recorded)
        record.pop(self, active)
        return loss

    def undo_also(self, scheduler: Any) -> Any:
        """Let `unstep` put a scheduler of torch.optim back to where it stood at the step; returns the scheduler.

        Say it before the first step, and of each in the same order after loading. Functions given to a scheduler
        (`LambdaLR`) are taken to depend on the epoch alone. If a scheduler is left out, undoing is refused (but for a
        ReduceLROnPlateau that has not lowered anything yet, which cannot be seen).

        Raises:
            InvalidSetting: it is of another optimizer, or keeps its state in more than numbers and words.
        """
        self.schedulers.add(self, scheduler)
        return scheduler

    def adopt(self) -> int:
        """Take over parameter values that were edited outside (loaded, clamped, perturbed) as the new state.

        Elements that were not edited keep all their bits. Going back below this step then follows another
        path, and is no longer checked against the record.

        Returns:
            How many elements were edited.
        """
        with interrupt.critical():
            count = flat.adopt(self._slots)
            if count:
                self.journal.edited()
        return count

    # -- what it costs, what it holds ----------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Parameters (elements) held."""
        return sum(s.stop - s.start for s in self._slots)

    def price(self) -> float:
        """Bits per parameter per step in theory, at the present settings: what contractions cost.

        Data-dependent ops (rescaling) are not in it; the tape measures those.
        """
        active = [s for s in self._slots if s.parameter.requires_grad]
        world = flat.world_of(active, present(self), World([]), counting=1)
        ops = (*self.kicks(), *self.drifts())
        size = sum(part.size for part in world.parts)
        return sum(op.price(part) * part.size for op in ops for part in world.parts) / max(1, size)

    def digest(self) -> str:
        """Hex digest of every integer of the state, the step counts and the tape."""
        items: list[Any] = [self.steps, *(f"{k}={v.hex()}" for k, v in sorted(self.carried.items()))]
        for block, slots in flat.by_block(self._slots):
            for name, lattice in block.lattices.items():
                items += [name, lattice.n, torch.from_numpy(lattice.e), *lattice.logs]
            items += [s.count for s in slots] + [block.stack.digest()]
        return digest(items)

    def tensor_digests(self) -> dict[str, str]:
        """Short digests of each parameter's integers, by "name/lattice"."""
        named = ((s, k) for s in self._slots for k in s.block.lattices if s.stop > s.start)
        return {f"{s.name}/{k}": digest([s.integers(k)], 6) for s, k in named}

    @property
    def lattice_state(self) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Integers and units of each parameter, by its name and the lattice's: the state itself, as others may read it.

        Integers are views, shaped like the parameter; units are copies, float64, shape (rows,): row i holds elements
        1024 i to 1024 (i + 1) of the parameter. A value is an integer times its row's unit.
        """
        out: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        for s in self._slots:
            each = out.setdefault(s.name, {})
            for name, lattice in s.block.lattices.items():
                each[name] = s.integers(name), torch.from_numpy(lattice.units(*s.rows_at))
        return out

    def check_shown(self) -> None:
        """Raise Inconsistent if a parameter is not, bit for bit, the view of its integers. For right after a step.

        Each step counts what it writes; this compares every element, in one pass over memory.
        """
        flat.refuse_unshown(self._slots)

    def name_parameters(self, names: dict[int, str]) -> None:
        """Use these names in messages and files: id(parameter) -> name."""
        for s in self._slots:
            s.name = names.get(id(s.parameter), s.name)

    # -- torch.optim's surface -----------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, as in torch; the next `replay` counts as the first pass of a step."""
        self.passes.visits = 0
        self.backward.clear()
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, at any time. Its parameters are snapped to the lattice.

        Raises:
            InvalidSetting: parameters or settings that are not known or cannot be wound back. Nothing was changed.
        """
        with interrupt.critical():
            groups.add(self, param_group, super().add_param_group)
            losses.watch(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing and going back need: integers, tape, journal. A copy, never an alias."""
        return serial.state_dict(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict` of the same class and layout; integers stay integers, parameters follow.

        Raises:
            InvalidSetting: it is of another optimizer or layout. Nothing was changed.
        """
        serial.load_state_dict(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        hooks = {k for k in self.__dict__ if k.startswith("_optimizer_")}
        return {k: v for k, v in self.__dict__.items() if k not in hooks and k != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        serial.expose(self, self._slots)  # a pickle does not keep that they are views
        losses.watch(self)

    @property
    def _step_supports_amp_scaling(self) -> bool:  # asked by GradScaler.step, before it does anything
        raise InvalidSetting(
            "torch.amp.GradScaler skips steps and rescales gradients behind the optimizer's back.",
            "train in bfloat16 or float32, without a GradScaler.",
        )

    # -- inside a step -------------------------------------------------------------------------------

    def warn_once(self, key: str, text: str, category: type[Warning] = RuntimeWarning) -> None:
        """Warn the first time only."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, category, stacklevel=2)
