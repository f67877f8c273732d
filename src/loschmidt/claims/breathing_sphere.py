"""ECD on a sphere: the same Hamiltonian with the norm of the parameters held, in float64.

R          norm of the parameters, constant: |q| = R, p . q = 0
kick       p <- p - dt eta G' / D, G' the part of grad F along the sphere
drift      along the great circle of p, by the angle dt |v| / R, v = 2 p / (s + |p|^2); p is carried along

Both keep what they must by construction: a kick stays tangent, a drift keeps |p|. Projecting p after each drift instead
would take (dt |v| / R)^2 of |p|^2 a step, which is friction, the very thing that is to be told apart from the norm.
"""

import math
from collections.abc import Callable

import torch

from ..tasks.modular_addition import loss
from .adding import Adding


class Sphere:
    """A motion with eta = s = 1, F0 = 0 and decay inside H, where it adds a constant.

    Args:
        net: network and sums; its parameters are moved.
        state: (2, n) float64, q and p to start from, in the order of the parameters; p's part along q is taken away.
        lr: dt.
        weight_decay: inside H.

    Attributes:
        q, p: (n,) float64.
        radius: R.
        energy_change: the largest |H - H at the start|, in nats, of all steps.
    """

    def __init__(self, net: Adding, state: torch.Tensor, lr: float, weight_decay: float):
        self.net, self.lr, self.weight_decay = net, lr, weight_decay
        self.q, self.p = state[0].clone(), state[1].clone()
        self.radius = float(self.q.norm())
        self._tangent(self.p)
        self.energy_change, self._start = 0.0, None
        self._parameters = list(net.model.parameters())

    def _tangent(self, x: torch.Tensor) -> None:
        x.sub_(self.q, alpha=float(x @ self.q) / self.radius**2)

    def _write(self) -> None:
        at = 0
        with torch.no_grad():
            for p in self._parameters:
                p.copy_(self.q[at : at + p.numel()].view(p.shape))
                at += p.numel()

    def step(self) -> None:
        """Kick, then drift."""
        self._write()
        for p in self._parameters:
            p.grad = None
        value = loss(self.net.model, self.net.train)
        value.backward()
        force = torch.cat([p.grad.double().flatten() for p in self._parameters])
        d = float(value.detach()) + 0.5 * self.weight_decay * self.radius**2
        square = float(self.p @ self.p)
        energy = math.log(d) + math.log(1 + square)
        self._start = energy if self._start is None else self._start
        self.energy_change = max(self.energy_change, abs(energy - self._start))
        self._tangent(force)
        self.p.sub_(force, alpha=self.lr / d)
        size = float(self.p.norm())
        if size == 0:
            return
        angle = self.lr * 2 * size / (1 + size**2) / self.radius
        along, up, c, s = self.p / size, self.q / self.radius, math.cos(angle), math.sin(angle)
        self.q = (up * c + along * s) * self.radius
        self.p = (along * c - up * s) * size

    def run(self, steps: int, every: int, tell: Callable[[], None]) -> dict[str, list[float]]:
        """Steps, and rows of what is seen: "step", "train", "test", "norm", "square"; `tell` is called at each."""
        rows: dict[str, list[float]] = {name: [] for name in ("step", "train", "test", "norm", "square")}
        for step in range(1, steps + 1):
            self.step()
            if step % every == 0 or step == steps:
                self._write()
                knows = self.net.knows()
                seen = (step, knows["train"], knows["test"], float(self.q.norm()), float(self.p @ self.p))
                for name, value in zip(rows, seen, strict=True):
                    rows[name].append(value)
                tell()
        for p in self._parameters:
            p.grad = None
        return rows
