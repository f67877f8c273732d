"""Many copies of one run of ECD at once, in float64: forward and back, from states that differ.

x        states (n, 2, size): parameters q and momenta p of n copies, laid out as in `physics.state.Layout`
step     p <- p - dt eta G/D,  q <- q + 2 dt p/(s + |p|^2)
undo     the same two in reverse, by algebra; below step 0 it goes on backward in time (full batch)

For perturbations far above rounding a return needs no bits. Rounding of floats is a perturbation, too: of about 1e-16
a step, which a way back without any other shows. `tests/test_arrow.py` holds it against the lattice's echo.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad_and_value, vmap

from ..dynamics import separable
from ..errors import InvalidSetting
from ..physics.state import Layout
from ..trajectory import Trajectory

Pairs = tuple[torch.Tensor, torch.Tensor]
Look = Callable[[int, torch.Tensor], None]

CHUNK = 20
"""Copies that are stepped together: more need more memory than a processor's cache has."""


class Flow:
    """The dynamics of a full-batch run, for many states at once.

    Args:
        traj: a run of ECD with decay inside H, whose settings stay; its model is only read.
        train: pairs and sums, the full batch.

    Raises:
        InvalidSetting: a run that does more than kick and drift.
    """

    def __init__(self, traj: Trajectory, train: Pairs):
        own = traj.optimizer.param_groups[0]
        plain = {"conserve": "none", "nu": 0.0, "decoupled": False, "integrator": "euler", "delta_energy": 0.0}
        for name, value in plain.items():
            if own.get(name) != value:
                raise InvalidSetting(
                    f"{name}={own.get(name)!r}: here ECD kicks and drifts only.", f"set it to {value!r}."
                )
        self.model, self.train, self.layout = traj.model, train, Layout(traj.optimizer)
        self.dt, self.eta, self.F0, self.s = own["lr"], own["eta"], own["F0"], own["s"]
        self.decay = own["weight_decay"]
        self._slopes = vmap(grad_and_value(self._potential))
        self._outputs = vmap(self._output, in_dims=(0, None))

    def _output(self, q: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        weights = {name: q[start:stop].view(shape) for name, (start, stop, shape) in self.layout.places.items()}
        return functional_call(self.model, weights, (pairs,))

    def _potential(self, q: torch.Tensor) -> torch.Tensor:
        fit = F.cross_entropy(self._output(q, self.train[0]), self.train[1])
        return fit + self.decay / 2 * q.square().sum() - self.F0

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One step on."""
        q, p = x[:, 0], x[:, 1]
        force, potential = self._slopes(q)
        p = p + force * separable.kick(self.dt, potential, self.eta)[:, None]
        return torch.stack([q + p * self._pace(p), p], 1)

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """One step back."""
        q, p = x[:, 0], x[:, 1]
        q = q - p * self._pace(p)
        force, potential = self._slopes(q)
        return torch.stack([q, p - force * separable.kick(self.dt, potential, self.eta)[:, None]], 1)

    def _pace(self, p: torch.Tensor) -> torch.Tensor:
        return separable.drift(self.dt, p.square().sum(1, keepdim=True), self.s)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """H of each, in nats; shape (n,)."""
        potential = vmap(self._potential)(x[:, 0])
        return self.eta * potential.log() + (self.s + x[:, 1].square().sum(1)).log()

    @torch.no_grad()
    def outputs(self, x: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Logits (n, pairs, p)."""
        return self._outputs(x[:, 0], pairs)

    @torch.no_grad()
    def right(self, x: torch.Tensor, data: Pairs) -> torch.Tensor:
        """Share of pairs whose likeliest answer is right; shape (n,)."""
        return (self.outputs(x, data[0]).argmax(-1) == data[1]).double().mean(1)

    def growth(self, x: torch.Tensor, v: torch.Tensor, steps: int) -> torch.Tensor:
        """How nudges of one state grow: tangent maps by differences of copies that are held 1e-7 apart.

        A gradient a direction and step, where `physics.tangent` takes a product with the Hessian; the same to about
        1e-6 where the loss is smooth (tested). A kink between two copies counts as if it were a slope.

        Args:
            x: one state (2, size).
            v: directions (k, 2, size).
            steps: how many, forward.

        Returns:
            ln of |p part of v| over |v at first|, shape (steps + 1, k).
        """
        apart = 1e-7 * float(x.norm())
        norms = v.flatten(1).norm(dim=1)
        v, logs, out = v / norms[:, None, None], torch.zeros(len(v), dtype=x.dtype, device=x.device), []
        for step in range(steps + 1):
            out.append(logs + v[:, 1].norm(dim=1).log())
            if step < steps:
                moved = self.step(torch.cat([x[None], x + apart * v]))
                x, v = moved[0], (moved[1:] - moved[0]) / apart
                norms = v.flatten(1).norm(dim=1)
                logs, v = logs + norms.log(), v / norms[:, None, None]
        return torch.stack(out)

    def wind(self, x: torch.Tensor, start: int, stop: int, at: Collection[int], look: Look) -> torch.Tensor:
        """Take states from one step to another, forward or back; `look(step, x)` at some on the way.

        A copy that is not finite any more stays so, and disturbs no other.
        """
        sign, move = (1, self.step) if stop > start else (-1, self.undo)
        for step in range(start, stop, sign):
            x = move(x)
            if step + sign in at:
                look(step + sign, x)
        return x
