"""One evaluation of a step: the same batch, the same random numbers, the same gradient, at every call."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidSetting, LoschmidtError, Nondeterministic, OutOfReach, SourceChanged
from ..exact import digest, random
from ..exact.digest import raw_bytes
from . import environment, surroundings

if TYPE_CHECKING:
    from .trajectory import Trajectory


def evaluate(
    traj: "Trajectory", step: int, backward: bool = True, absent: Sequence[torch.Tensor] = ()
) -> torch.Tensor | None:
    """Loss of a step's batch at the present parameters, with gradients in `.grad`; None for an empty batch.

    Seeds torch, numpy and `random`; whoever calls puts their states back. `absent`: parameters that had no gradient.
    """
    if backward:
        traj.optimizer.zero_grad()
        traj.model.zero_grad()  # parameters that the optimizer does not hold: clipping would see old gradients
    step = traj.moment(step)
    random.seed_all("step", traj.seed, step)
    batch = _batch(traj, step)
    if batch is None:
        return None
    if traj._shapes is not None:
        _warn_of_shapes(traj, batch)
    torch.clear_autocast_cache()  # under an autocast around it all, casts made in no_grad would have no gradient
    loss = traj.loss_fn(traj.model, batch)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
        kind = type(loss).__name__
        what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {kind}"
        remedy = "return one real number, as a tensor: for example the mean over the batch."
        raise InvalidSetting(f"loss(model, batch) gave {what} at step {step}.", remedy)
    if backward:
        if not loss.requires_grad:
            raise InvalidSetting(
                f"the loss of step {step} does not depend on any parameter that requires a gradient.",
                "compute it from the model's output, without detach() or no_grad().",
            )
        loss.backward()
        for p in absent:
            p.grad = None
        if traj.after_backward is not None:
            traj.after_backward(traj.model)
    return loss


def _batch(traj: "Trajectory", step: int) -> Any:
    try:
        return traj.data(step)
    except (IndexError, KeyError, ValueError, LoschmidtError) as error:
        if step >= 0:
            raise
        raise OutOfReach(
            f"the batch source has no step {step}, before the start: {error}",
            "give one that has, like lo.data.Schedule; or do not go back past the start.",
        ) from error


def preflight(traj: "Trajectory") -> bool:
    """Compare two evaluations of the present step, bit by bit. Buffers and random states are the caller's care.

    Returns:
        Whether there was something to compare: an empty batch shows nothing.

    Raises:
        Nondeterministic: naming the first tensor that differs.
        SourceChanged: the batch source gave two different batches for one step.
    """
    traj._shapes = [] if environment.depends_on_history(traj.model) else None
    step, buffers, untracked = traj.step, traj.buffers.snapshot(), surroundings.checksums(traj)
    if digest_of(_batch(traj, traj.moment(step))) != digest_of(_batch(traj, traj.moment(step))):
        raise SourceChanged(
            f"the batch source gave two different batches for step {step}.",
            "make it a function of the step alone, for example lo.data.Schedule(dataset, batch_size=64, seed=0).",
        )
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        traj.buffers.restore(buffers)
        loss = evaluate(traj, step)
        tensors = {} if loss is None else {"the loss": loss.detach().clone()}
        for s in traj.optimizer._slots:
            if s.parameter.grad is not None:
                tensors[f"the gradient of {s.name}"] = s.parameter.grad.detach().clone()
        tensors |= {f"buffer {name}": value for name, (value, _) in traj.buffers.snapshot().items()}
        seen.append(tensors)
    traj.optimizer.zero_grad()
    for name, bits in surroundings.checksums(traj).items():
        if bits != untracked.get(name, bits):
            raise Nondeterministic(
                f"evaluating step {step} changed {name}, a parameter that no param group holds (a running average?), "
                "and what changes outside the optimizer cannot be put back.",
                "make it a buffer: register_buffer().",
            )
    first, second = seen
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or raw_bytes(a) != raw_bytes(b):
            count = "" if a is None or b is None else f" in {int((a != b).sum())} of {a.numel()} values"
            raise Nondeterministic(
                f"{name} differs{count} between two evaluations of step {step} on the same batch.",
                "call torch.use_deterministic_algorithms(True), and draw random numbers from torch's, numpy's or "
                "Python's global generators only.",
            )
    return loss is not None


def _warn_of_shapes(traj: "Trajectory", batch: Any) -> None:
    """Warn once if batches of several shapes go through a model whose kernels depend on their order.

    `preflight` found out whether it is one; then `traj._shapes` are those of the batch before.
    """
    shapes = [tuple(x.shape) for x in _leaves(batch) if isinstance(x, torch.Tensor)]
    if traj._shapes not in ([], shapes):
        for name in environment.depends_on_history(traj.model):
            traj.optimizer.warn_once(
                "shapes",
                f"{name} is compiled with dynamic=None, and batches have several shapes: which kernel serves a shape "
                "depends on the order in which they came, so that going back may be refused. Remedy: compile with "
                "dynamic=False, or let all batches have one shape.",
            )
    traj._shapes = shapes


def digest_of(batch: Any) -> str:
    """Short digest of a batch: tensors, arrays, numbers and strings in tuples, lists and mappings."""
    return digest(_leaves(batch), 8)


def _leaves(x: Any) -> list[torch.Tensor | str]:
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, Mapping):
        return [leaf for k, v in x.items() for leaf in (str(k), *_leaves(v))]
    if isinstance(x, Sequence) and not isinstance(x, (str, bytes)):
        return [f"[{len(x)}]", *(leaf for v in x for leaf in _leaves(v))]
    if hasattr(x, "__array__"):
        return [torch.as_tensor(x)]
    return [repr(x)] if isinstance(x, (int, float, str, bytes, bool, type(None))) else [type(x).__name__]
