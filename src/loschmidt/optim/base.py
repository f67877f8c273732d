"""`ReversibleOptimizer`: torch.optim's surface, with `step` and `unstep` derived from a program of ops."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch

from .. import exact
from ..errors import BelowResolution, InvalidSetting, LoschmidtError, NonFinite, OutOfReach
from ..exact import Journal, Op, Tape, World, digest, lost_share, run, run_back
from . import flat, serial
from .mismatch import other_gradient, refuse_other_gradients, refuse_unrecorded
from .replay import Passes
from .settings import Settings, pack, present, refuse_options, require, require_number, unpack

Closure = Callable[[], Any]

_CHECK_RESOLUTION_EVERY = 500
_BELOW_RESOLUTION_SHARE = 0.1


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
        carried: scalars that live longer than a step (ECD's energy shell), by name.
        seed: key of random draws (scattering, `replay`, the tape's reserve).
    """

    lattices: ClassVar[dict[str, float | None]] = {}
    """Names and resolutions of the state besides "q"; None means the optimizer's `resolution`."""
    needs_loss: ClassVar[bool] = False
    """Whether a step reads the value of the loss."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Settings that must be the same in all param groups."""
    carries: ClassVar[tuple[str, ...]] = ()
    """Scalars of a step that stay known afterwards, in `carried`, until that step is undone."""
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
        refuse_options(type(self).__name__, options or {}, defaults)
        known = lattice in (torch.int64, torch.int32)
        require(known, "lattice", lattice, "not a supported type of integer", "use torch.int64 or torch.int32.")
        self.resolution, self.lattice, self.seed = resolution, lattice, seed
        e = exact.exponent_of(resolution)
        finer = {k: e if r is None else max(e, round(-math.log2(r))) for k, r in self.lattices.items()}
        self._exponents = {"q": e} | finer
        self.tape, self.journal, self.passes = Tape(), Journal(), Passes()
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
            NonFinite, LossBelowF0, LatticeOverflow, EditedOutside, InvalidSetting: nothing was changed, and
                buffers that passes inside `replay` changed are put back.
        """
        try:
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._advance(loss)
        except BaseException:
            self.passes.note(self.passes.buffers.changed())
            self.passes.buffers.put(self.passes.done())
            raise
        return loss

    def _advance(self, loss: Any) -> None:
        settings = present(self)
        flat.check_unedited(self._slots)
        active = [s.index for s in self._slots if s.parameter.grad is not None]
        mine = [self._slots[i] for i in active]
        value = self._loss_value(loss, required=bool(active))
        flat.gather(mine, self.steps)
        world = flat.world_of(mine, settings, World([], value, self.steps, self.seed, carried=self.carried), counting=1)
        check = world.checksum(self.needs_loss)
        self.prepare(world)
        kicks, drifts = self.kicks(), self.drifts()
        run(kicks, world)
        try:
            run(drifts, world, len(kicks))
        except BaseException:
            run_back(kicks, world)
            raise
        lost = lost_share(drifts, world) if world.step % _CHECK_RESOLUTION_EVERY == 1 else 0.0
        flat.write(mine)
        self._record(world, settings, active, check)
        self._warn_below_resolution(lost, world.step)  # last: a filter may turn warnings into errors

    @torch.no_grad()
    def unstep(self, closure: Closure) -> Any:
        """Undo the last step: parameters, state and tape are what they were before it, bit for bit.

        The settings of the param groups become those of the step undone, and `.grad` its gradients.

        Args:
            closure: repeats that step's loss, backward, accumulation and clipping at the restored parameters,
                inside `with lo.replay(opt):` if the model has dropout or BatchNorm, and returns the loss.
                Gradients are cleared before it is called.

        Returns:
            What the closure returned.

        Raises:
            OutOfReach: there is no step to undo.
            ReplayMismatch: the closure's gradient is not the step's. The step stands as before the call.
            NonFinite, LatticeOverflow: only after `adopt`, on a path that was never recorded. As before the call.
        """
        if self.steps == self.journal.first:
            raise OutOfReach(
                f"there is no step to undo: this is step {self.steps}, where the record begins.", "take a step first."
            )
        flat.check_unedited(self._slots)
        check, entry = self.journal.peek()
        settings, active, step = self._settings, self._active, self.steps - 1
        mine = [self._slots[i] for i in active]
        kicks, drifts = self.kicks(), self.drifts()
        world = flat.world_of(mine, settings, World([], None, step, self.seed, carried=self.carried), counting=0)
        world.scalars = dict(entry.get("scalars", {}))
        world.coarsened = [tuple(c) for c in entry.get("coarsened", [])]
        passes, recorded = self.passes, entry.get("buffers", {})
        passes.buffers.changed()
        passes.done()
        run_back(drifts, world, len(kicks))
        flat.write(mine)
        passes.undoing = True
        after = {name: value for name, value in passes.buffers.values().items() if name in recorded}
        passes.buffers.put(recorded)
        rng = torch.get_rng_state()
        try:
            self.zero_grad()
            with torch.enable_grad(), passes.buffers.watching():
                loss = closure()
            drew = passes.visits == 0 and not torch.equal(rng, torch.get_rng_state())
            world.loss = self._loss_value(loss, required=bool(active))
            passes.note(passes.buffers.changed())
            refuse_other_gradients(self._slots, active, step)
            flat.gather(mine, step)
            if step >= self.journal.verified_from and world.checksum(self.needs_loss) != check:
                raise other_gradient(step, drew)
            refuse_unrecorded(passes.before, recorded, step)
            run_back(kicks, world)
        except BaseException:
            passes.note(passes.buffers.changed())
            passes.buffers.put(passes.done() | after)
            run(drifts, world, len(kicks))
            flat.write(mine)
            raise
        finally:
            passes.undoing = False
        passes.buffers.put(passes.done() | recorded)
        self._unrecord(active)
        return loss

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
            items += [x for name, lat in block.lattices.items() for x in (name, lat.exponent, lat.n)]
            items += [s.count for s in slots] + [block.lanes.digest()]
        return digest(items)

    def tensor_digests(self) -> dict[str, str]:
        """Short digests of each parameter's integers, by "name/lattice"."""
        named = ((s, k) for s in self._slots for k in s.block.lattices if s.stop > s.start)
        return {f"{s.name}/{k}": digest([s.integers(k)], 6) for s, k in named}

    def name_parameters(self, names: dict[int, str]) -> None:
        """Use these names in messages and files: id(parameter) -> name."""
        for s in self._slots:
            s.name = names.get(id(s.parameter), s.name)

    # -- torch.optim's surface -----------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, as in torch; the next `replay` counts as the first pass of a step."""
        self.passes.visits = 0
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, at any time. Its parameters are snapped to the lattice."""
        group, at = len(self.param_groups), len(self._slots)
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError("parameters have no order in a set; pass a list.")
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
    def _step_supports_amp_scaling(self) -> bool:  # asked by GradScaler.step, before it does anything
        raise InvalidSetting(
            "torch.amp.GradScaler skips steps and rescales gradients behind the optimizer's back.",
            "train in bfloat16 or float32, without a GradScaler.",
        )

    # -- inside a step -------------------------------------------------------------------------------

    def _loss_value(self, loss: Any, required: bool) -> float | None:
        if loss is None:
            if self.needs_loss and required:
                raise InvalidSetting(
                    f"{type(self).__name__} needs the value of the loss.",
                    "call step(loss=loss) or step(closure), with a closure that returns the loss.",
                )
            return None
        value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if not math.isfinite(value):
            raise NonFinite(f"the loss is {value} at step {self.steps}.", "look at this batch, and lower lr.")
        return value

    def _record(self, world: World, settings: Settings, active: list[int], check: int) -> None:
        entry: dict[str, Any] = {"scalars": world.scalars, "buffers": self.passes.done()}
        entry["coarsened"] = [list(c) for c in world.coarsened]
        entry = {k: v for k, v in entry.items() if v}
        if self._settings is not None and self._settings != settings:
            entry["settings"] = pack(self._settings, settings)
        if self._active is not None and self._active != active:
            entry["active"] = self._active
        self._settings, self._active = settings, active
        self.carried.update({k: v for k, v in world.scalars.items() if k in self.carries})
        self._count(active, 1)
        self.journal.push(check, entry)

    def _unrecord(self, active: list[int]) -> None:
        used, entry = self._settings, self.journal.pop()
        self._count(active, -1)
        for name in entry.get("scalars", {}):
            self.carried.pop(name, None)
        if self.steps == 0:
            self._settings = self._active = None
        else:
            self._settings = unpack(entry.get("settings"), used)
            self._active = entry.get("active", active)
        for group, settings in zip(self.param_groups, used, strict=False):
            group.update(settings)

    def _count(self, active: list[int], sign: int) -> None:
        for i in active:
            s = self._slots[i]
            s.count += sign
            self.state[s.parameter]["step"] = s.count
            self.tape.element_steps += sign * (s.stop - s.start)

    def warn_once(self, key: str, text: str, category: type[Warning] = RuntimeWarning) -> None:
        """Warn the first time only."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, category, stacklevel=2)

    def _warn_below_resolution(self, share: float, step: int) -> None:
        if share > _BELOW_RESOLUTION_SHARE:
            self.warn_once(
                "resolution",
                f"{share:.0%} of the non-zero updates of step {step} are below half the resolution "
                f"{self.resolution:g} and move nothing. Remedy: pass a finer resolution, or raise lr.",
                BelowResolution,
            )
