"""`ReversibleOptimizer`: torch.optim's surface, with `step` and `unstep` derived from a program of ops."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch

from .. import exact
from ..errors import BelowResolution, InvalidSetting, LoschmidtError, NonFinite, OutOfReach, ReplayMismatch
from ..exact import Journal, Op, Part, Tape, World, checksum, digest, run, run_back
from . import flat, serial
from .replay import BufferWatch

Closure = Callable[[], Any]
Settings = list[dict[str, Any]]

_CHECK_RESOLUTION_EVERY = 500
_BELOW_RESOLUTION_SHARE = 0.1
_REASONS = {
    "nesterov": "Nesterov's look-ahead puts the gradient into the drift, and torch's form maps several states to one",
    "amsgrad": "amsgrad's running maximum forgets which value it replaced",
    "fused": "fused kernels round where the lattice must not",
    "capturable": "steps are recorded on the host",
    "differentiable": "rounding to a lattice has no derivative",
}


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
        steps: steps taken.
        seed: key of random draws (scattering, `replay`, the tape's reserve).
    """

    lattices: ClassVar[dict[str, float | None]] = {}
    """Names and resolutions of the state besides "q"; None means the optimizer's `resolution`."""
    needs_loss: ClassVar[bool] = False
    """Whether a step reads the value of the loss."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Settings that must be the same in all param groups."""
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
        resolution: float = 2.0**-40,
        lattice: torch.dtype = torch.int64,
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ):
        self._refuse_options(options or {}, defaults)
        self.resolution, self.lattice, self.seed = resolution, lattice, seed
        e = exact.exponent_of(resolution)
        finer = {k: e if r is None else max(e, exact.exponent_of(r)) for k, r in self.lattices.items()}
        self._exponents = {"q": e} | finer
        self.tape, self.journal = Tape(), Journal()
        self._slots: list[flat.Slot] = []
        self._settings: Settings | None = None  # of the last step; the journal has the ones before
        self._active: list[int] | None = None  # slots that took part in the last step
        self._undoing = False
        self._visits = 0
        self._buffers = flat.BufferIndex()
        self._pending_buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._warned = False
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

    # -- stepping ------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken and not undone."""
        return self.journal.steps

    @torch.no_grad()
    def step(self, closure: Closure | None = None, *, loss: torch.Tensor | float | None = None) -> Any:
        """Take one step from the gradients in `.grad`.

        Args:
            closure: clears the gradients, computes the loss, calls backward, returns the loss.
            loss: the loss that the gradients belong to, if there is no closure (ECD needs one of the two).

        Returns:
            The loss, if given or computed.

        Raises:
            NonFinite, LossBelowF0, LatticeOverflow, EditedOutside, InvalidSetting: nothing was changed.
        """
        if getattr(self, "found_inf", None) is not None:
            self._step_supports_amp_scaling  # noqa: B018 - raises
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        value = self._loss_value(loss)
        settings = self._present_settings()
        flat.check_unedited(self._slots)
        active = [s.index for s in self._slots if s.parameter.grad is not None]
        mine = [self._slots[i] for i in active]
        flat.gather(mine, self.steps)
        world = self._world(settings, active, value, self.steps, counting=1)
        check = self._checksum(world)
        kicks, drifts = self.kicks(), self.drifts()
        run(kicks, world)
        try:
            run(drifts, world, len(kicks))
        except BaseException:
            run_back(kicks, world)
            raise
        self._warn_below_resolution(world, drifts)
        flat.write(mine)
        self._record(world, settings, active, check)
        return loss

    @torch.no_grad()
    def unstep(self, closure: Closure) -> Any:
        """Undo the last step: parameters, state and tape are what they were before it, bit for bit.

        Args:
            closure: repeats that step's loss, backward, accumulation and clipping at the restored parameters,
                inside `with lo.replay(opt):` if the model has dropout or BatchNorm, and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            OutOfReach: there is no step to undo.
            ReplayMismatch: the closure's gradient is not the step's. The step stands as before the call.
        """
        if self.steps == self.journal.first:
            raise OutOfReach(f"there is no step to undo: this is step {self.steps}.", "take a step first.")
        flat.check_unedited(self._slots)
        with BufferWatch() as watch:
            return self._undo(closure, watch)

    def _undo(self, closure: Closure, watch: BufferWatch | None = None) -> Any:
        check, entry = self.journal.peek()
        settings, active, step = self._settings, self._active, self.steps - 1
        mine = [self._slots[i] for i in active]
        kicks, drifts = self.kicks(), self.drifts()
        world = self._world(settings, active, None, step, counting=0)
        world.scalars = dict(entry.get("scalars", {}))
        world.coarsened = [tuple(c) for c in entry.get("coarsened", [])]
        run_back(drifts, world, len(kicks))
        flat.write(mine)
        rng = torch.get_rng_state() if watch else None
        self._undoing, self._visits = True, 0
        try:
            with torch.enable_grad():
                loss = closure()
            world.loss = self._loss_value(loss)
            present = [s.index for s in self._slots if s.parameter.grad is not None]
            if present != active:
                name = self._slots[min(set(present) ^ set(active))].name
                raise ReplayMismatch(
                    f"undoing step {step}: {name} {'has' if present else 'lacks'} a gradient, unlike in that step.",
                    "repeat exactly that step's loss in the closure.",
                    step,
                    name,
                )
            flat.gather(mine, step)
            if step >= self.journal.verified_from and self._checksum(world) != check:
                moved = watch is not None and not torch.equal(rng, torch.get_rng_state())
                raise self._mismatch(step, moved)
            if watch is not None:
                self._restore_buffers(watch, entry.get("buffers", {}), step)
        except BaseException:
            if watch is not None:
                watch.restore()
            run(drifts, world, len(kicks))
            flat.write(mine)
            raise
        finally:
            self._undoing, self._visits = False, 0
            self._pending_buffers.clear()
        run_back(kicks, world)
        self._unrecord(active)
        return loss

    def _mismatch(self, step: int, drew: bool) -> ReplayMismatch:
        if drew:
            return ReplayMismatch(
                f"undoing step {step}: the closure drew random numbers (dropout?) outside replay, and its gradient "
                "is not the step's.",
                "run the passes of every step, and of the closure, inside `with lo.replay(optimizer):`.",
                step,
                "gradient",
            )
        return ReplayMismatch(
            f"undoing step {step}: the gradient (or the loss) differs from the one this step was taken with. "
            "Was the step undone before, is this another batch, or are the kernels nondeterministic?",
            f"give unstep the closure of step {step}, with the same data, order, shapes and threads.",
            step,
            "gradient",
        )

    def adopt(self) -> int:
        """Take over parameter values that were edited outside (loaded, clamped, perturbed) as the new state.

        Elements that were not edited keep all their bits. Going back below this step then follows another
        path, and is no longer checked against the record.

        Returns:
            How many elements were edited.
        """
        count = flat.adopt(self._slots)
        if count:
            self.journal.verified_from = self.steps
        return count

    # -- what it costs, what it holds ------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Parameters (elements) held."""
        return sum(s.stop - s.start for s in self._slots)

    def price(self) -> float:
        """Bits per parameter per step in theory, at the present settings: what contractions cost.

        Data-dependent ops (rescaling) are not in it; the tape measures those.
        """
        world = self._world(self._present_settings(), list(range(len(self._slots))), None, self.steps, counting=1)
        ops = (*self.kicks(), *self.drifts())
        return sum(op.price(part) * part.size for op in ops for part in world.parts) / max(1, self.numel)

    def digest(self) -> str:
        """Hex digest of every integer of the state, the step counts and the tape."""
        items: list[Any] = [self.steps]
        for block, slots in flat.by_block(self._slots):
            items += [x for name, lat in block.lattices.items() for x in (name, lat.exponent, lat.n)]
            items += [s.count for s in slots] + [block.lanes.digest()]
        return digest(items)

    def tensor_digests(self) -> dict[str, str]:
        """Short digests of each parameter's integers, by "name/lattice"."""
        return {
            f"{s.name}/{k}": digest([s.integers(k)], 6) for s in self._slots for k in s.block.lattices if s.stop > s.start
        }

    def name_parameters(self, names: dict[int, str]) -> None:
        """Use these names in messages and files: id(parameter) -> name."""
        for s in self._slots:
            s.name = names.get(id(s.parameter), s.name)

    # -- torch.optim's surface -----------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, at any time. Its parameters are snapped to the lattice."""
        group, at = len(self.param_groups), len(self._slots)
        params = param_group["params"]
        params = [params] if isinstance(params, torch.Tensor) else list(params)
        bare = [x[1] if isinstance(x, tuple) else x for x in params]
        names = [x[0] if isinstance(x, tuple) else f"parameter {i} of group {group}" for i, x in enumerate(params)]
        for name, p in zip(names, bare, strict=True):
            if isinstance(p, torch.Tensor):
                flat.refuse_parameter(p, name)
        flat.refuse_overlap([s.parameter for s in self._slots] + [p for p in bare if isinstance(p, torch.Tensor)])
        self.check_settings({**self.defaults, **{k: v for k, v in param_group.items() if k != "params"}})
        super().add_param_group(param_group | {"params": params})
        try:
            named = list(zip(names, self.param_groups[-1]["params"], strict=False))
            new = flat.build(group, named, at, self._exponents, self.lattice, self.seed)
        except LoschmidtError:
            self.param_groups.pop()
            raise
        self._slots += new
        self.tape.lanes += [block.lanes for block, _ in flat.by_block(new)]
        serial.expose(self, new)

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

    @property
    def _step_supports_amp_scaling(self) -> bool:
        raise InvalidSetting(
            "torch.amp.GradScaler skips steps and rescales gradients behind the optimizer's back.",
            "train in bfloat16 or float32, without a GradScaler.",
        )

    # -- inside a step -------------------------------------------------------------------------------

    def _present_settings(self) -> Settings:
        out = []
        for group in self.param_groups:
            chosen = {k: group[k] for k in self.defaults if k in group}
            out.append({k: float(v) if isinstance(v, torch.Tensor) else v for k, v in chosen.items()})
        if out != self._settings:
            for settings in out:
                self.check_settings(settings)
            for key in self.shared:
                values = {repr(s[key]) for s in out}
                if len(values) > 1:
                    raise InvalidSetting(
                        f"{key} differs between param groups ({', '.join(sorted(values))}), but there is one energy.",
                        f"give all groups the same {key}.",
                    )
        return out

    def _loss_value(self, loss: Any) -> float | None:
        if loss is None:
            if self.needs_loss:
                raise InvalidSetting(
                    f"{type(self).__name__}.step needs the value of the loss.",
                    "call step(loss=loss) or step(closure), with a closure that returns the loss.",
                )
            return None
        value = float(loss)
        if not math.isfinite(value):
            raise NonFinite(f"the loss is {value} at step {self.steps}.", "look at this batch and lr.")
        return value

    def _world(self, settings: Settings, active: list[int], loss: float | None, step: int, counting: int) -> World:
        world = World([], loss, step, self.seed)
        last: flat.Slot | None = None
        for s in (self._slots[i] for i in active):
            joins = last is not None and (last.block, last.stop, last.count) == (s.block, s.start, s.count)
            if joins:
                world.parts[-1].stop = s.stop
            elif s.stop > s.start:
                world.parts.append(
                    Part(s.block, s.start, s.stop, settings[s.group], s.count + counting, world, self._namer(s.block))
                )
            last = s if joins or s.stop > s.start else last
        return world

    def _namer(self, block: exact.Block) -> Callable[[int], str]:
        return lambda i: next((s.name for s in self._slots if s.block is block and s.start <= i < s.stop), "a parameter")

    def _checksum(self, world: World) -> int:
        total = 0
        for part in world.parts:
            total = total * 31 + checksum(part.gradient) + part.start
        if self.needs_loss:
            total = total * 31 + checksum(torch.tensor([world.loss], dtype=torch.float64))
        return (total + 2**63) % 2**64 - 2**63

    def _record(self, world: World, settings: Settings, active: list[int], check: int) -> None:
        entry: dict[str, Any] = {}
        if settings != self._settings and self._settings is not None:
            entry["settings"] = serial.pack_settings(self._settings, settings)
        if active != self._active and self._active is not None:
            entry["active"] = self._active
        if world.scalars:
            entry["scalars"] = world.scalars
        if world.coarsened:
            entry["coarsened"] = [list(c) for c in world.coarsened]
        if self._pending_buffers:
            entry["buffers"] = {str(i): old for i, (_, old) in self._pending_buffers.items()}
        self._settings, self._active = settings, active
        self._pending_buffers, self._visits = {}, 0
        self._count(active, 1)
        self.journal.push(check, entry)

    def _unrecord(self, active: list[int]) -> None:
        used = self._settings
        entry = self.journal.pop()
        self._count(active, -1)
        if self.steps == self.journal.first == 0:
            self._settings = self._active = None
        else:
            self._settings = serial.unpack_settings(entry.get("settings"), used)
            self._active = entry.get("active", active)
        for group, settings in zip(self.param_groups, used, strict=False):
            group.update(settings)

    def _count(self, active: list[int], sign: int) -> None:
        for i in active:
            s = self._slots[i]
            s.count += sign
            self.state[s.parameter]["step"] = s.count
            self.tape.element_steps += sign * (s.stop - s.start)

    def _warn_below_resolution(self, world: World, drifts: Sequence[Op]) -> None:
        if self._warned or world.step % _CHECK_RESOLUTION_EVERY != 1:
            return
        lost = moved = 0
        for op in drifts:
            if isinstance(op, exact.Shear) and op.target == "q":
                for part in world.parts:
                    f = op.increment(part)
                    moved += int((f != 0).sum())
                    lost += int(((f != 0) & (f.abs() < 0.5 * 2.0 ** -part.block.lattices["q"].exponent)).sum())
        if lost > _BELOW_RESOLUTION_SHARE * moved:
            self._warned = True
            warnings.warn(
                f"{lost / moved:.0%} of the non-zero updates of step {world.step} are below half the resolution "
                f"{self.resolution:g} and move nothing. Remedy: pass a finer resolution, or raise lr.",
                BelowResolution,
                stacklevel=4,
            )

    # -- replay --------------------------------------------------------------------------------------

    def _replay_position(self) -> tuple[int, int]:
        self._visits += 1
        return self.steps - self._undoing, self._visits - 1

    def _note_buffers(self, changed: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for buffer, old in changed:
            self._pending_buffers.setdefault(self._buffers.number(buffer), (buffer, old))

    def _restore_buffers(self, watch: BufferWatch, recorded: dict[str, torch.Tensor], step: int) -> None:
        for buffer, _ in watch.changed():
            if str(self._buffers.number(buffer)) not in recorded:
                raise ReplayMismatch(
                    f"undoing step {step}: the closure changed a buffer of shape {tuple(buffer.shape)} (BatchNorm?) "
                    "whose earlier value was not recorded.",
                    "run the passes of every step, and of the closure, inside `with lo.replay(optimizer):`.",
                    step,
                    "buffers",
                )
        for i, (buffer, _) in self._pending_buffers.items():
            if str(i) in recorded:
                buffer.copy_(recorded[str(i)])
