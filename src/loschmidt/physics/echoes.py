"""Echoes: wind a run back with something different, and see how far from the outgoing path it comes.

T           the turn: where the run stands
path        the states of steps T, T - 1, ... as they were on the way out, found by exact undoing
echo        the same steps undone from a perturbed state, or otherwise
distance    |echo - path| at the same step, by lattice; relative: over |path|
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InvalidSetting, LatticeOverflow, LoschmidtError, LossBelowF0, NonFinite, OutOfReach, ReplayMismatch
from ..trajectory import guard
from .naive import NaiveRun
from .outcome import Echo, agreement, rms
from .perturb import Floats, Nudge, Perturbation, Sample, settings_by_step
from .replica import Replica
from .state import Layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory

Observe = Callable[[nn.Module], torch.Tensor]
_ENDS = (LatticeOverflow, NonFinite, ReplayMismatch, LossBelowF0)
_POINTS = 50


@dataclass
class _Path:
    """The way out, at the steps that are sampled."""

    states: dict[int, torch.Tensor] = field(default_factory=dict)
    seen: dict[int, torch.Tensor | None] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    end_digest: str = ""


def echo(
    trajectory: "Trajectory",
    steps: int | None = None,
    perturbation: Perturbation | float | Sequence[Perturbation | float | None] | None = None,
    *,
    observe: Observe | None = None,
    every: int | None = None,
    beyond: int = 0,
    keep: bool = False,
) -> Any:
    """Wind a run back from where it stands, with something different, and compare with the path that led here.

    The path is found first, by undoing `steps` steps exactly; then the run is put back, perturbed, and undone again,
    with the recorded batches unless these are what differs. All of it happens in branches: afterwards the run stands
    where it stood, bit for bit. Sampled states of the path are held in memory, in float64.

    Past step 0 an optimizer with a Hamiltonian goes on backward in time (`Trajectory.time_reversed`): momenta are
    flipped and steps taken in mirrored order, with batches -1, -2, ... and the settings of step 0.

    Args:
        trajectory: the run; it stands at the turn.
        steps: how many to undo; None: all.
        perturbation: None: nothing, the control; a number: `Nudge` by it; `Unit`, `Nudge`, `Momenta`, `Sample`,
            `Fresh`, `Rate`, `Scaled`, `Floats`; or a list of these, which share the path.
        observe: `observe(model)` -> outputs on probe inputs, (n, classes) or any shape; called in eval mode without
            gradients. Batch norm's running statistics are those of the recorded path, also on a perturbed way back.
        every: steps between samples; None: about 50 samples. The first and the last step are always there.
        beyond: steps past step 0; needs all steps to be undone.
        keep: hold the states of the echo, too.

    Returns:
        An `Echo`, or a list of them if a list was given. Each row has: "step" (negative before the start); "loss" of
        that step's batch (None at the turn), "path_loss"; "distance" and "relative", by lattice; "agreement" (share
        of equal argmax along the last dimension) and "rms" (of the difference, over the RMS of the path's) between
        the outputs of echo and path; "agreement_with_turn" and "agreement_with_start", of the echo's outputs with
        those at the path's two ends. What does not exist is None: before step 0 there is no path.

    Raises:
        OutOfReach: more steps than there are; a batch source that has none before step 0. Nothing has moved.
        InvalidSetting: a perturbation that cannot be made, or moves nothing; `beyond` with friction.
    """
    guard.refuse_no_trajectory(trajectory)
    turn = trajectory.step
    first = max(trajectory.first, trajectory.journal.first)
    steps = turn - first if steps is None else guard.whole("steps", steps)
    if turn == first:
        raise OutOfReach(f"the run stands at step {turn}, where its record begins.", "seek forward before an echo.")
    if not 1 <= steps <= turn - first:
        raise OutOfReach(
            f"steps={steps}, and the run can go back {turn - first} from step {turn}.", f"give 1 to {turn - first}."
        )
    every = max(1, steps // _POINTS) if every is None else guard.whole("every", every)
    if every < 1:
        raise InvalidSetting(f"every={every}: nothing would be sampled.", "give 1 or more.")
    several = isinstance(perturbation, list | tuple)
    wanted = [_as_perturbation(p) for p in (perturbation if several else [perturbation])]
    beyond = guard.whole("beyond", beyond)
    _refuse_beyond(trajectory, turn - steps, beyond)
    lowest = -beyond if beyond else turn - steps
    for p in wanted:
        if isinstance(p, Sample) and p.at is not None and not lowest <= p.at < turn:
            seen = f"at={p.at}: the way back takes the batches of steps {turn - 1} to {lowest}."
            raise InvalidSetting(seen, "give one of these.")
    end, energy = turn - steps, getattr(trajectory.optimizer, "energy", None)
    sampled = {turn - i for i in range(0, steps, every)} | {end}
    walk = _Walk(trajectory, turn, end, every, sampled, observe, beyond, keep)
    try:
        walk.find_path()
        out = [walk.in_floats(p) if isinstance(p, Floats) else walk.perturbed(p) for p in wanted]
    finally:
        if energy is not None:
            trajectory.optimizer.energy = energy
    return out if several else out[0]


@dataclass
class _Walk:
    """Echoes of one run from one turn."""

    traj: "Trajectory"
    turn: int
    end: int
    every: int
    sampled: set[int]
    observe: Observe | None
    beyond: int
    keep: bool
    path: _Path = field(default_factory=_Path)

    def find_path(self) -> None:
        layout = Layout(self.traj.optimizer)

        def look(traj: "Trajectory") -> None:
            if traj.step in self.sampled:
                self.path.states[traj.step] = layout.read().cpu()
                self.path.seen[traj.step] = self._outputs(traj)
                self.path.losses[traj.step] = None if traj.step == self.turn else _last_loss(traj)

        with self.traj.branch():
            look(self.traj)
            self.traj.seek(self.end, on_step=look)
            self.path.end_digest = self.traj.digest()

    def perturbed(self, perturbation: Perturbation) -> Echo:
        layout, rows, states, ended, exact = Layout(self.traj.optimizer), [], {}, None, None
        with self.traj.branch() as traj:
            carried = dict(traj.optimizer.carried)
            before = perturbation.begin(traj, layout)
            traj._loss = None

            def look(traj: "Trajectory") -> None:
                if traj.step in self.sampled:
                    rows.append(self._row(traj.step, layout.read(), self._outputs(traj), _last_loss(traj)))
                    if self.keep:
                        states[traj.step] = layout.read().cpu()
                if before is not None:
                    before(traj)

            look(traj)
            rows[0]["loss"] = None
            try:
                traj.seek(self.end, on_step=look)
                exact = traj.digest() == self.path.end_digest
                if self.beyond:
                    self._go_beyond(traj, layout, rows, states, carried)
            except _ENDS as error:
                ended = error.seen
        size = {
            k: {"distance": rows[0]["distance"][k], "relative": rows[0]["relative"][k]} for k in rows[0]["distance"]
        }
        described = perturbation.to_dict()
        return Echo(self.turn, self.turn - self.end, described, size, rows, exact, ended, states)

    def _go_beyond(
        self,
        traj: "Trajectory",
        layout: Layout,
        rows: list,
        states: dict[int, torch.Tensor],
        carried: dict[str, float],
    ) -> None:
        traj.lr = None  # the settings are those of step 0, which undoing it has put in place
        if traj.optimizer.param_groups[0].get("delta_energy"):
            traj.seek(1)  # undoing step 0 took the momentum of the start away; taken anew, it is there again
        traj.optimizer.carried.update({k: v for k, v in carried.items() if k in traj.optimizer.carries})
        turn = traj.step
        flipped = torch.ones(len(layout.names), 1, dtype=torch.float64)
        flipped[1] = -1.0

        def look(traj: "Trajectory") -> None:
            step = 2 * turn - traj.step
            if step < 0 and (step % self.every == 0 or -step == self.beyond):
                rows.append(self._row(step, layout.read(), self._outputs(traj), _last_loss(traj)))
                if self.keep:
                    states[step] = layout.read().cpu() * flipped

        with traj.time_reversed():
            traj.seek(2 * turn + self.beyond, on_step=look)

    def in_floats(self, perturbation: Floats) -> Echo:
        """Undo in plain floats from the state at the turn, on a copy of the model."""
        traj, layout = self.traj, Layout(self.traj.optimizer)
        opt, dtype = traj.optimizer, perturbation.dtype
        _refuse_floats(traj, layout)
        recorded = settings_by_step(traj, self.end)
        replica, rows, ended, states = Replica(traj, dtype), [], None, {}

        def gradient(step: int) -> tuple[float, list[torch.Tensor]]:
            for p in replica.model.parameters():
                p.grad = None
            loss = replica.loss(step)
            if loss is None:
                return 0.0, [torch.zeros_like(p) for p in replica.parameters]
            loss.backward()
            if traj.after_backward is not None:
                traj.after_backward(replica.model)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in replica.parameters]
            return float(loss.detach()), grads

        start = dict(zip(layout.names, layout.read(), strict=True))
        run = NaiveRun(
            replica.parameters,
            gradient,
            opt.kicks(),
            opt.drifts(),
            recorded[self.turn - 1][0],
            list(opt.lattices),
            state=start,
            step=self.turn,
        )
        run.carried = dict(opt.carried)
        run.scalars = {t: dict(opt.journal.entries.get(t, {}).get("scalars", {})) for t in recorded}

        def look(loss: float | None) -> None:
            state = torch.stack([run.values[name].double() for name in layout.names])
            seen = self._outputs_at(state[0], layout)
            rows.append(self._row(run.step, state, seen, loss))
            if self.keep:
                states[run.step] = state.cpu()

        look(None)
        while run.step > self.end:
            run.settings = recorded[run.step - 1][0]
            try:
                run.back()
            except LoschmidtError as error:
                ended = error.seen
                break
            if not bool(torch.isfinite(run.values["q"]).all()):
                ended = f"the parameters are not finite at step {run.step}."
                break
            if run.step in self.sampled:
                look(run.loss)
        size = {
            k: {"distance": rows[0]["distance"][k], "relative": rows[0]["relative"][k]} for k in rows[0]["distance"]
        }
        described = perturbation.to_dict()
        return Echo(self.turn, self.turn - self.end, described, size, rows, None, ended, states)

    def _outputs(self, traj: "Trajectory") -> torch.Tensor | None:
        if self.observe is None:
            return None
        with traj.evaluating() as model, torch.no_grad():
            return _detached(self.observe(model))

    def _outputs_at(self, q: torch.Tensor, layout: Layout) -> torch.Tensor | None:
        """The outputs of the run's own model at other parameters; None if these have no place on the lattice."""
        if self.observe is None:
            return None
        with self.traj.branch() as traj:
            try:
                with traj.edit(), torch.no_grad():
                    for s in traj.optimizer._slots:
                        start, stop, shape = layout.places[s.name]
                        s.parameter.copy_(q[start:stop].view(shape))
            except LatticeOverflow:
                return None
            return self._outputs(traj)

    def _row(self, step: int, state: torch.Tensor, seen: torch.Tensor | None, loss: float | None) -> dict[str, Any]:
        path, names = self.path, Layout(self.traj.optimizer).names
        there = path.states.get(step)
        distance, relative = dict.fromkeys(names), dict.fromkeys(names)
        if there is not None:
            for name, a, b in zip(names, state.cpu(), there, strict=True):
                distance[name], norm = float((a - b).norm()), float(b.norm())
                relative[name] = distance[name] / norm if norm else (0.0 if distance[name] == 0 else None)
        return {
            "step": step,
            "loss": loss,
            "path_loss": path.losses.get(step),
            "distance": distance,
            "relative": relative,
            "agreement": agreement(seen, path.seen.get(step)),
            "rms": rms(seen, path.seen.get(step)),
            "agreement_with_turn": agreement(seen, path.seen.get(self.turn)),
            "agreement_with_start": agreement(seen, path.seen.get(self.end)),
        }


def _as_perturbation(p: Any) -> Perturbation:
    if p is None:
        return Perturbation()
    if isinstance(p, int | float) and not isinstance(p, bool):
        return Nudge(float(p))
    if not isinstance(p, Perturbation):
        raise InvalidSetting(
            f"perturbation is a {type(p).__name__}.", "give None, a number, or one of physics.Unit, Nudge, Momenta, ..."
        )
    return p


def _refuse_beyond(traj: "Trajectory", end: int, beyond: int) -> None:
    """Raise before anything moves if the way past step 0 is closed."""
    if not beyond:
        return
    if beyond < 0 or end != 0:
        seen = f"beyond={beyond} goes past step 0, but the echo ends at step {end}."
        raise InvalidSetting(seen, "undo all steps (steps=None), or give beyond=0.")
    guard.refuse_no_reversal(traj.optimizer)
    for settings in settings_by_step(traj, end)[end]:
        traj.optimizer.check_settings(settings | {"mirrored": True})
    for step in (-1, -beyond):
        try:
            traj.data(step)
        except Exception as error:
            raise OutOfReach(
                f"beyond={beyond}: the batch source has no step {step}: {type(error).__name__}: {error}",
                "give one that has steps before 0, like lo.data.Schedule; or beyond=0.",
            ) from error


def _refuse_floats(traj: "Trajectory", layout: Layout) -> None:
    opt = traj.optimizer
    if len(layout.blocks) != 1 or len(opt.param_groups) != 1:
        raise InvalidSetting(
            f"the float reversal knows one param group of one dtype; there are {len(layout.blocks)} blocks.",
            "construct the optimizer with one group.",
        )
    if any(isinstance(group["lr"], str) for group in opt.param_groups):
        raise InvalidSetting("the float reversal needs an lr that is a number, not 'auto'.", "give lr a number.")
    if any("parts" in entry for entry in opt.journal.entries.values()):
        raise InvalidSetting("the float reversal undoes kick-then-drift only.", 'use integrator="euler".')


def _last_loss(traj: "Trajectory") -> float | None:
    return None if traj._last_loss is None else float(traj._last_loss)


def _detached(x: Any) -> torch.Tensor:
    if not isinstance(x, torch.Tensor):
        raise InvalidSetting(f"observe(model) gave a {type(x).__name__}.", "return a tensor of outputs.")
    return x.detach().to("cpu", torch.float64)
