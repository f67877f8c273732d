"""Who is measured: each optimizer beside its twin in torch.optim, on parameters laid out as those of a transformer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .. import optim
from ..exact import random
from ..optim import ReversibleOptimizer
from ..optim.integers import integer_types

LOSS = 0.7
"""What ECD is told, where gradients are given and there is no model."""


@dataclass(frozen=True)
class Subject:
    """One optimizer with its settings.

    Attributes:
        name: in tables and JSON.
        optimizer: its class in `loschmidt.optim`.
        settings: of that class.
        twin: the class in torch.optim that it is compared with (ECD has none there: SGD with momentum).
        twin_settings: of that class.
        lattices: names of the integers that a parameter has.
        rereads: those that are read once more because a step needs a sum over all parameters in the middle.
        twin_floats: floats of state a parameter has in torch.
        target: what its step may take at most, as a multiple of the fused twin's, at 10 million parameters.
        more: the most bytes a parameter may hold above the twin.
    """

    name: str
    optimizer: str
    settings: dict[str, Any]
    twin: str
    twin_settings: dict[str, Any]
    lattices: tuple[str, ...]
    twin_floats: int
    target: float
    more: int
    rereads: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, parameters: Sequence[torch.nn.Parameter]) -> ReversibleOptimizer:
        """The reversible optimizer."""
        return getattr(optim, self.optimizer)(parameters, **self.settings, **self.options)

    def make_twin(self, parameters: Sequence[torch.nn.Parameter], kind: str) -> torch.optim.Optimizer:
        """Its twin; kind: "fused" or "foreach"."""
        return getattr(torch.optim, self.twin)(parameters, **self.twin_settings, **{kind: True})

    def bytes_moved(self) -> int:
        """Bytes a parameter that a step must read and write: integers both ways, gradient, weights both ways."""
        types = integer_types(self.options.get("lattice", torch.int64), self.lattices)
        return sum(types[name].itemsize for name in (*self.lattices, *self.lattices, *self.rereads)) + 4 + 8

    def twin_bytes_moved(self) -> int:
        """The same for the twin."""
        return 4 * 2 * self.twin_floats + 4 + 8


_SGD = {"lr": 1e-3, "momentum": 0.9}
_ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
_INT32 = {"lattice": torch.int32, "resolution": 2.0**-24}
_INT32_WEIGHTS = {"lattice": {"q": torch.int32}, "resolution": 2.0**-24}
_LIKE_SGD = {"twin": "SGD", "twin_settings": _SGD, "lattices": ("q", "p"), "twin_floats": 1, "more": 8}
_LIKE_ADAM = {"lattices": ("q", "m", "v"), "twin_floats": 2, "target": 3.0, "more": 12}

SUBJECTS = (
    Subject("SGD int64", "SGD", _SGD, target=2.0, **_LIKE_SGD),
    Subject("SGD int32", "SGD", _SGD, target=2.0, options=_INT32, **_LIKE_SGD),
    Subject("ECD int64", "ECD", {"lr": 0.02}, target=3.5, rereads=("p",), **_LIKE_SGD),
    Subject("ECD int32", "ECD", {"lr": 0.02}, target=2.0, rereads=("p",), options=_INT32, **_LIKE_SGD),
    Subject("Adam", "Adam", {"lr": 1e-3}, "Adam", {"lr": 1e-3}, **_LIKE_ADAM),
    Subject("AdamW", "AdamW", _ADAMW, "AdamW", _ADAMW, **_LIKE_ADAM),
    Subject("AdamW, q int32", "AdamW", _ADAMW, "AdamW", _ADAMW, options=_INT32_WEIGHTS, **_LIKE_ADAM),
)


def named(name: str) -> Subject:
    """The subject of this name."""
    return next(s for s in SUBJECTS if s.name == name)


# -- parameters ------------------------------------------------------------------------------------------


_WIDEST = 1024
_LARGEST = 4 * _WIDEST**2


def shapes(size: int) -> list[tuple[int, ...]]:
    """Shapes of a transformer's tensors with `size` elements in all: layers, then an embedding for the rest.

    A layer of width w has matrices of 3w^2, w^2, 4w^2 and 4w^2 elements and vectors of 4w and w; w is at most 1,024.
    """
    width = _WIDEST
    while width > 4 and _layer_size(width) > size:
        width -= 4 if width <= 64 else 64
    layer = [(3 * width, width), (width, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    layer += [(width,)] * 2
    out = layer * (size // _layer_size(width))
    rest = size % _layer_size(width)
    while rest >= width:
        rows = min(rest, _LARGEST) // width
        out.append((rows, width))
        rest -= rows * width
    return out + [(rest,)] * bool(rest)


def _layer_size(width: int) -> int:
    return 12 * width**2 + 7 * width


def parameters(size: int, seed: int, device: str) -> list[torch.nn.Parameter]:
    """Normal float32 weights of standard deviation 0.02; the same for the same arguments."""
    draw = _draws("weights", size, seed, device)
    return [torch.nn.Parameter(x.mul_(0.02)) for x in draw]


def gradients(size: int, seed: int, device: str) -> list[torch.Tensor]:
    """Normal float32 gradients of standard deviation 0.01."""
    return [x.mul_(0.01) for x in _draws("gradients", size, seed, device)]


def _draws(what: str, size: int, seed: int, device: str) -> Iterator[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(random.key("bench", what, seed, size) & ((1 << 63) - 1))
    return (torch.randn(shape, generator=generator, device=device) for shape in shapes(size))


def give(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Put gradients into `.grad`, by reference."""
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g


# -- what is held ----------------------------------------------------------------------------------------


def held(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that an optimizer holds beyond parameters and gradients, by what they are for; the tape apart.

    Every tensor and array that can be reached from the optimizer is counted, memory that is shared only once.
    Scratch memory that belongs to no optimizer (of kernels) can't be seen from here.

    Returns:
        Of ours: `lattices`, `rows` (units and bounds), `other`, and their sum `resident`; `tape` beside.
        Of torch's: `other`, `resident`, `tape` (0).
    """
    seen: set[Any] = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            seen.add(_memory(p))
            if p.grad is not None:
                seen.add(_memory(p.grad))
    found = dict.fromkeys(("lattices", "rows"), 0)
    for block in {id(s.block): s.block for s in getattr(optimizer, "_slots", ())}.values():
        for lattice in block.lattices.values():
            found["lattices"] += _count(lattice.n, seen)
            found["rows"] += _count(lattice.e, seen) + _count(lattice.bound, seen)
    tape = _reachable([getattr(getattr(optimizer, "tape", None), "stacks", [])], seen)
    found["other"] = _reachable([vars(optimizer)], seen)
    if not hasattr(optimizer, "tape"):
        found = {"other": found["other"]}
    return found | {"resident": sum(found.values()), "tape": tape}


def _memory(x: torch.Tensor | np.ndarray) -> tuple[str, int]:
    if isinstance(x, torch.Tensor):
        return str(x.device), x.untyped_storage().data_ptr()
    base = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    return "cpu", base.ctypes.data


def _count(x: Any, seen: set[Any]) -> int:
    if not isinstance(x, torch.Tensor | np.ndarray) or _memory(x) in seen:
        return 0
    seen.add(_memory(x))
    return x.untyped_storage().nbytes() if isinstance(x, torch.Tensor) else x.nbytes


def _reachable(roots: list[Any], seen: set[Any]) -> int:
    """Bytes of all tensors and arrays below some objects, through containers and objects of this package."""
    total, todo, met = 0, list(roots), set()
    while todo:
        x = todo.pop()
        if id(x) in met:
            continue
        met.add(id(x))
        if isinstance(x, torch.Tensor | np.ndarray):
            total += _count(x, seen)
        elif isinstance(x, dict):
            todo += [*x.keys(), *x.values()]
        elif isinstance(x, list | tuple | set | frozenset):
            todo += x
        elif type(x).__module__.startswith(__name__.split(".")[0]):
            todo += [vars(x)] if hasattr(x, "__dict__") else []
            todo += [getattr(x, k, None) for k in getattr(type(x), "__slots__", ())]
    return total
