"""Adam and AdamW.

m, v   first and second moment     b1, b2  betas     t  step count of the parameter
g      gradient, + weight_decay q for Adam

kicks   m <- b1 m, m <- m + (1 - b1) g             log2(1/b1) bits an element
        v <- b2 v, v <- v + (1 - b2) g^2           log2(1/b2) bits an element
drifts  q <- (1 - lr weight_decay) q  (AdamW)      log2(1/(1 - lr weight_decay)) bits an element
        q <- q - lr m^/(sqrt v^ + eps),  m^ = m/(1 - b1^t), v^ = v/(1 - b2^t)
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch

from ..exact import Contract, Op, Part, Shear
from . import energy
from .base import ReversibleOptimizer
from .integers import LatticeTypes, integer_types
from .settings import require, require_number
from .sgd import decayed_gradient


class Adam(ReversibleOptimizer):
    """Adam that can be stepped back bit for bit.

    Follows `torch.optim.Adam` to lattice resolution. 1,024 neighbouring elements have one unit
    for each moment, chosen at their first gradient, and made coarser on demand where gradients grow: a bit on the tape
    for each parameter and factor of 2. Under v lies one unit, about 3e-5 of the row's largest root mean square
    gradient: an eps of its own. The price is log2(1/(b1 b2)) bits per parameter per step:
    0.1535 at (0.9, 0.999).

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: learning rate.
        betas: (b1, b2), both in (0, 1). With b1 = 0 a step is not invertible, and is refused.
        eps: added to the root.
        weight_decay: L2, added to the gradient. Costs no bits.
        amsgrad: refused when true.
        maximize: ascend.
        moments: "16-bit": m and v in half the memory, with about three digits each; another trajectory than torch's, of
            the same quality (docs/what-it-costs.md).
        resolution: of the parameters' lattice, a power of two; None: chosen for each 1,024 elements, 2**-27 of their
            largest.
        lattice: torch.int32, or torch.int64; or by name, as {"q": torch.int64}.
        seed: key of random draws and of the tape's reserve.

    Raises:
        InvalidSetting: amsgrad, b1 = 0, sparse or complex or float16 parameters, unknown options.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """

    lattices: ClassVar[dict[str, int]] = {"m": 2, "v": 2}
    energy_law: ClassVar[energy.EnergyLaw] = energy.ADAM

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        moments: Literal["32-bit", "16-bit"] | None = None,
        resolution: float | None = None,
        lattice: LatticeTypes = torch.int32,
        seed: int = 0,
        **options: Any,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        require(moments in (None, "32-bit", "16-bit"), "moments", moments, "unknown", 'use "32-bit" or "16-bit".')
        if moments is not None:
            short = torch.int16 if moments == "16-bit" else torch.int32
            lattice = integer_types(lattice, ["q", *self.lattices]) | dict.fromkeys(self.lattices, short)
        options["amsgrad"] = amsgrad
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse betas outside (0, 1)."""
        super().check_settings(settings)
        require_number(settings, "eps")
        betas = settings["betas"]
        two = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(isinstance(b, (int, float)) for b in betas)
        require(two, "betas", betas, "two numbers are needed", "use betas=(0.9, 0.999).")
        why = "with b1 = 0 the drift contains the gradient, so the step has no inverse"
        require(betas[0] != 0, "betas", betas, why, "use betas=(0.9, 0.999).")
        require(all(0 < b < 1 for b in betas), "betas", betas, "both must be in (0, 1)", "use betas=(0.9, 0.999).")

    def kicks(self) -> Sequence[Op]:
        """Both moments take in the gradient."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """The parameters follow the moments."""
        return (STEP,)


class AdamW(Adam):
    """AdamW that can be stepped back bit for bit: Adam with decoupled weight decay.

    Follows `torch.optim.AdamW` to lattice resolution. Decay contracts the parameters, for another
    log2(1/(1 - lr weight_decay)) bits per parameter per step: 1.4e-5 at lr 1e-3, weight_decay 0.01.

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: learning rate.
        betas: (b1, b2), both in (0, 1). With b1 = 0 a step is not invertible, and is refused.
        eps: added to the root.
        weight_decay: decoupled; lr * weight_decay must be below 1.
        amsgrad: refused when true.
        maximize: ascend.
        moments: "16-bit": m and v in half the memory, with about three digits each; another trajectory than torch's, of
            the same quality (docs/what-it-costs.md).
        resolution: of the parameters' lattice, a power of two; None: chosen for each 1,024 elements, 2**-27 of their
            largest.
        lattice: torch.int32, or torch.int64; or by name, as {"q": torch.int64}.
        seed: key of random draws and of the tape's reserve.

    Raises:
        InvalidSetting: as for `Adam`, and for lr * weight_decay >= 1.

    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """

    energy_law: ClassVar[energy.EnergyLaw] = energy.ADAMW

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        moments: Literal["32-bit", "16-bit"] | None = None,
        resolution: float | None = None,
        lattice: LatticeTypes = torch.int32,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            moments=moments,
            resolution=resolution,
            lattice=lattice,
            seed=seed,
            **options,
        )

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse also a decay that would take the parameters through zero."""
        super().check_settings(settings)
        require_decay(settings)

    def kicks(self) -> Sequence[Op]:
        """Both moments take in the bare gradient."""
        return BARE_KICKS

    def drifts(self) -> Sequence[Op]:
        """Decay, then the step."""
        return (DECAY, STEP)


def require_decay(settings: dict[str, Any]) -> None:
    """Raise InvalidSetting unless 1 - lr weight_decay is positive, and so has an inverse."""
    decay = settings["lr"] * settings["weight_decay"]
    why = f"lr * weight_decay is {decay:g}, and a contraction by {1 - decay:g} has no inverse"
    require(decay < 1, "weight_decay", settings["weight_decay"], why, "keep lr * weight_decay below 1.")


def _bare_gradient(part: Part) -> torch.Tensor:
    return -part.gradient if part["maximize"] else part.gradient


def _moments(gradient) -> tuple[Op, ...]:
    return (
        Contract("m", lambda part: part["betas"][0]),
        Shear("m", lambda part: gradient(part) * (1 - part["betas"][0])),
        Contract("v", lambda part: part["betas"][1]),
        Shear("v", lambda part: gradient(part).square().mul_(1 - part["betas"][1]), dithered=True),
    )


def _step(part: Part) -> torch.Tensor:
    b1, b2 = part["betas"]
    # off the recorded path v may be below zero
    root = part.value("v", plus=1).clamp_min(0.0).mul_(1 / (1 - b2**part.count)).sqrt_().add_(part["eps"])
    return part.value("m").div(root).mul_(-part["lr"] / (1 - b1**part.count))


KICKS = _moments(decayed_gradient)
BARE_KICKS = _moments(_bare_gradient)
DECAY = Contract("q", lambda part: 1 - part["lr"] * part["weight_decay"])
STEP = Shear("q", _step)
