"""A copy of a run's model in floats of another precision: losses, gradients and Hessian products at any parameters."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import NotSmooth
from ..exact import random
from .state import Layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory


class Replica:
    """The model of a trajectory, copied; the run itself is never touched.

    Batches, random numbers (dropout) and modes are those of the step that is asked for. Batches are cast, too.

    Args:
        traj: the run.
        dtype: of the copy.
    """

    def __init__(self, traj: "Trajectory", dtype: torch.dtype = torch.float64):
        self.traj, self.layout, self.dtype = traj, Layout(traj.optimizer), dtype
        self.model: nn.Module = copy.deepcopy(traj.model).to(dtype)
        twins = dict(zip(map(id, traj.model.parameters()), self.model.parameters(), strict=True))
        by_name = {s.name: twins[id(s.parameter)] for s in traj.optimizer._slots}
        self.places = sorted((start, stop, by_name[name]) for name, (start, stop, _) in self.layout.places.items())
        self.parameters = [p for _, _, p in self.places]
        for p in self.model.parameters():
            p.grad = None
        for p in self.parameters:
            p.requires_grad_(True)

    @torch.no_grad()
    def put(self, q: torch.Tensor) -> None:
        """Set the parameters, from a row of a state."""
        for start, stop, p in self.places:
            p.copy_(q[start:stop].view(p.shape))

    def loss(self, step: int) -> torch.Tensor | None:
        """Loss of a step's batch at the parameters that were put; None if the batch is empty."""
        moment = self.traj.moment(step)
        with random.isolated(), torch.enable_grad():
            random.seed_all("step", self.traj.seed, moment)
            batch = cast(self.traj.data(moment), self.dtype)
            if batch is None:
                return None
            torch.clear_autocast_cache()
            # Fused kernels of attention have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                return self.traj.loss_fn(self.model, batch)

    def row(self, pieces: list[torch.Tensor | None]) -> torch.Tensor:
        """One tensor a parameter as a row of a state; None is zero."""
        flat = [
            torch.zeros(p.numel(), dtype=self.dtype, device=p.device) if x is None else x.detach().reshape(-1)
            for x, p in zip(pieces, self.parameters, strict=True)
        ]
        return torch.cat([x.to(self.layout.device) for x in flat])

    def changing_buffers(self, step: int) -> list[str]:
        """Names of buffers that evaluating the loss changes, but for running statistics of batch norm."""
        watched = {}
        for name, module in self.model.named_modules():
            # They are not read in train mode, so that no gradient depends on them.
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                watched |= {f"{name}.{k}".lstrip("."): b for k, b in module.named_buffers(recurse=False)}
        before = {name: b.clone() for name, b in watched.items()}
        self.loss(step)
        return [name for name, b in watched.items() if not torch.equal(b, before[name])]


class Slope:
    """Loss, gradient and products with the Hessian at one point of a run, by differentiating twice.

    Args:
        replica: in float64.
        step: whose batch it is.
        q: parameters, a row of a state.

    Raises:
        NotSmooth: the gradient cannot be differentiated again.
    """

    def __init__(self, replica: Replica, step: int, q: torch.Tensor):
        replica.put(q)
        self.replica, loss = replica, replica.loss(step)
        zero = torch.zeros_like(q)
        self.loss, self.gradient, self._pieces = None, zero, []
        if loss is None:
            return
        if not loss.requires_grad:
            raise NotSmooth(
                f"the loss of step {step} does not depend on the parameters of a copy of the model.",
                "let loss(model, batch) use the model it is given.",
            )
        self.loss = float(loss.detach())
        self._pieces = torch.autograd.grad(loss, replica.parameters, create_graph=True, allow_unused=True)
        self.gradient = replica.row(list(self._pieces))

    def hessian_times(self, dq: torch.Tensor) -> torch.Tensor:
        """Hessian times a direction, both rows of a state."""
        pieces = [(g, start, stop) for g, (start, stop, _) in zip(self._pieces, self.replica.places, strict=False)]
        terms = [(g * dq[start:stop].view(g.shape).to(g.device)).sum() for g, start, stop in pieces if g is not None]
        total = sum(t for t in terms if t.requires_grad) if terms else None
        if total is None or not isinstance(total, torch.Tensor):
            return torch.zeros_like(self.gradient)
        try:
            second = torch.autograd.grad(total, self.replica.parameters, retain_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise NotSmooth(
                f"the gradient could not be differentiated once more: {error}",
                "use layers with a second derivative.",
            ) from error
        return self.replica.row(list(second))


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its floating tensors in `dtype`; structure kept."""
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {k: cast(v, dtype) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(cast(v, dtype) for v in batch))
    if type(batch) in (list, tuple):
        return type(batch)(cast(v, dtype) for v in batch)
    return batch
