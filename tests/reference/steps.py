"""Steps of optimizers in float64 without a lattice, written down from their papers: what tangent maps are held against.

Each takes parameters q, the optimizer's other state, the loss as a function of q, and the number of the step.
"""

from collections.abc import Callable

import torch

State = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]


def slope(loss: Loss, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = q.detach().clone().requires_grad_(True)
    value = loss(q)
    return value.detach(), torch.autograd.grad(value, q)[0]


def sgd(x: State, loss: Loss, t: int, lr: float, momentum: float, weight_decay: float = 0.0) -> State:
    g = slope(loss, x["q"])[1] + weight_decay * x["q"]
    p = momentum * x["p"] - g
    return {"q": x["q"] + lr * p, "p": p}


def adam(
    x: State, loss: Loss, t: int, lr: float, betas: tuple[float, float] = (0.9, 0.999), decoupled: float = 0.0
) -> State:
    (b1, b2), g = betas, slope(loss, x["q"])[1]
    m, v = b1 * x["m"] + (1 - b1) * g, b2 * x["v"] + (1 - b2) * g * g
    step = m / (1 - b1 ** (t + 1)) / ((v / (1 - b2 ** (t + 1))).sqrt() + 1e-8)
    return {"q": (1 - lr * decoupled) * x["q"] - lr * step, "m": m, "v": v}


def ecd(x: State, loss: Loss, t: int, lr: float, weight_decay: float = 0.0, eta: float = 1.0, s: float = 1.0) -> State:
    value, g = slope(loss, x["q"])
    height = value + 0.5 * weight_decay * x["q"].square().sum()
    p = x["p"] - lr * eta * (g + weight_decay * x["q"]) / height
    return {"q": x["q"] + 2 * lr * p / (s + p.square().sum()), "p": p}


def bbi(x: State, loss: Loss, t: int, lr: float, E: float = 0.0) -> State:
    """Born-Infeld; E is the energy of the start."""
    value, g = slope(loss, x["q"])
    p = x["p"] - 0.5 * lr * (value / E + E / value) * g
    return {"q": x["q"] + lr * value / E * p, "p": p}


def ecd_q1(x: State, loss: Loss, t: int, lr: float, eta: float) -> State:
    """Unit speed, without bringing p to length 1."""
    value, g = slope(loss, x["q"])
    n = x["q"].numel()
    c = lr * eta * n / (2 * (n - 1)) / value
    p = (1 + c * (x["p"] @ g)) * x["p"] - c * g
    return {"q": x["q"] + lr * p, "p": p}


def ecd_on_shell(x: State, loss: Loss, t: int, lr: float, shell: float, s: float = 1.0) -> State:
    """With the momentum put on the energy shell before its kick; eta 1, no decay."""
    value, _ = slope(loss, x["q"])
    target = torch.exp(shell - torch.log(value)) - s
    return ecd(x | {"p": x["p"] * (target / x["p"].square().sum()).sqrt()}, loss, t, lr, s=s)


def ecd_leapfrog(x: State, loss: Loss, t: int, lr: float, s: float = 1.0) -> State:
    """Half a drift, a kick, half a drift."""
    q = x["q"] + lr * x["p"] / (s + x["p"].square().sum())
    value, g = slope(loss, q)
    p = x["p"] - lr * g / value
    return {"q": q + lr * p / (s + p.square().sum()), "p": p}


def difference(step: Callable[[State], State], x: State, v: State, h: float = 1e-3) -> State:
    """The derivative of a step along v, by central differences of sixth order."""
    weights = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
    out = {name: torch.zeros_like(value) for name, value in x.items()}
    for k, w in weights:
        for sign in (1, -1):
            moved = step({name: value + sign * k * h * v[name] for name, value in x.items()})
            out = {name: out[name] + sign * w / h * moved[name] for name in out}
    return out
