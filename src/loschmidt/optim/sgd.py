"""Stochastic gradient descent with momentum.

p  momentum, with torch's sign reversed: p = -momentum_buffer
g  gradient, + weight_decay q where there is decay

kicks   p <- momentum p            log2(1/momentum) bits an element
        p <- p - (1 - dampening) g
drift   q <- q + lr p
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from ..errors import InvalidSetting
from ..exact import Contract, Op, Part, Shear
from . import energy
from .base import ReversibleOptimizer
from .integers import LatticeTypes
from .settings import require, require_number


def decayed_gradient(part: Part) -> torch.Tensor:
    """Gradient with torch's coupled L2 decay and `maximize`, float64."""
    g, decay = part.gradient, part["weight_decay"]
    if part["maximize"]:
        g = -g
    return g.add(part.value("q"), alpha=decay) if decay else g


class SGD(ReversibleOptimizer):
    """SGD with momentum that can be stepped back bit for bit.

    Follows `torch.optim.SGD` to lattice resolution. The price is log2(1/momentum) bits per parameter per step:
    0.1520 at 0.9, 0.0145 at 0.99, nothing at 1.0 (no friction).

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: learning rate.
        momentum: in (0, 1]; it has to be given. torch's default, 0, is refused: such a step has no inverse.
        dampening: in [0, 1); not applied to a parameter's first step, as in torch.
        weight_decay: L2, added to the gradient. Costs no bits.
        nesterov: refused when true.
        maximize: ascend.
        resolution: distance of neighbouring lattice points, a power of two; None: chosen for each 1,024 elements, as
            2**-27 of their largest.
        lattice: torch.int32, or torch.int64 (then pass a resolution like 2**-40); or by name, as {"p": torch.int64}.
        seed: key of random draws and of the tape's reserve.

    Raises:
        InvalidSetting: Nesterov, momentum 0 or left out, sparse or complex or float16 parameters, unknown options.

    Source: Sutskever et al. 2013 (the form torch uses); reversal by Maclaurin et al., arXiv 1502.03492.
    """

    lattices: ClassVar[dict[str, int]] = {"p": 3}
    energy_law: ClassVar[energy.EnergyLaw] = energy.NEWTON

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float | None = None,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        resolution: float | None = None,
        lattice: LatticeTypes = torch.int32,
        seed: int = 0,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        options["nesterov"] = nesterov
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse momentum outside (0, 1] and dampening outside [0, 1)."""
        super().check_settings(settings)
        require_number(settings, "dampening")
        momentum, dampening = settings["momentum"], settings["dampening"]
        why = "without momentum the drift contains the gradient, so the step has no inverse"
        if momentum is None:
            raise InvalidSetting(
                f"SGD was given no momentum, and torch's default of 0 is not possible here: {why}.",
                "write momentum=0.9, or another momentum in (0, 1].",
            )
        require(momentum != 0, "momentum", momentum, why, "use a momentum in (0, 1], for example 0.9.")
        require_number(settings, "momentum", above=True)
        require(momentum <= 1, "momentum", momentum, "above 1 it grows without bound", "use a momentum in (0, 1].")
        require(dampening < 1, "dampening", dampening, "it leaves nothing of the gradient", "use one in [0, 1).")

    def kicks(self) -> Sequence[Op]:
        """Friction, then the gradient."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """The parameters follow the momentum."""
        return DRIFTS


def _kick(part: Part) -> torch.Tensor:
    keep = 1.0 if part.count == 1 else 1.0 - part["dampening"]
    return decayed_gradient(part) * -keep


KICKS = (Contract("p", lambda part: part["momentum"]), Shear("p", _kick))
DRIFTS = (Shear("q", lambda part: part.value("p") * part["lr"]),)
