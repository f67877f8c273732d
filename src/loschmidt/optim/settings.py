"""Hyper-parameters: what is refused and why, what a step reads, and how the journal keeps changes."""

import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InvalidSetting

if TYPE_CHECKING:
    from .base import ReversibleOptimizer

Settings = list[dict[str, Any]]
"""One dict of hyper-parameters for each param group."""

REASONS = {
    "nesterov": "Nesterov's look-ahead puts the gradient into the drift, and torch's form maps several states to one",
    "amsgrad": "amsgrad's running maximum forgets which value it replaced",
    "decoupled_weight_decay": "Adam with decoupled decay is AdamW",
    "fused": "fused kernels round where a lattice must not",
    "capturable": "steps are recorded on the host",
    "differentiable": "rounding to a lattice has no derivative",
}
"""Options of torch.optim that have no inverse here; a false value is accepted."""
_IGNORED = {"foreach"}
_OF_OTHERS = {
    *("params", "param_names", "name", "group_name", "loschmidt"),
    *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"),  # torch.optim.lr_scheduler
    *("lr_scale", "lr_mult", "wd_scale", "wd_mult", "decay_mult", "layer_id"),  # timm, mmengine and their like
}
"""Keys of a param group that are no settings: marks of schedulers and frameworks, which they may set at any time."""


NOTE = "scheduler "
"""What begins the names of notes beside the first group's settings, about where schedulers stood."""


def refuse_options(optimizer: str, options: dict[str, Any], known: Collection[str]) -> None:
    """Raise InvalidSetting for options that are unknown, or known to torch and not reversible."""
    for name, value in options.items():
        if name in REASONS and value:
            raise InvalidSetting(f"{optimizer}: {name}={value!r} is refused: {REASONS[name]}.", f"leave {name} out.")
        if name not in REASONS and name not in _IGNORED:
            raise InvalidSetting(
                f"{optimizer} has no setting {name!r}.",
                f"it has: {', '.join([*known, 'resolution', 'lattice', 'seed'])}.",
            )


def refuse_group(optimizer: "ReversibleOptimizer", group: dict[str, Any]) -> None:
    """Raise InvalidSetting for a param group with settings that are unknown, not reversible or out of range."""
    known = optimizer.defaults.keys() - REASONS.keys()
    rest = {k: v for k, v in group.items() if k not in known | _OF_OTHERS}
    refuse_options(f"{type(optimizer).__name__} (param group {len(optimizer.param_groups)})", rest, optimizer.defaults)
    optimizer.check_settings(plain(optimizer.defaults | group))


def require(ok: bool, name: str, value: Any, why: str, remedy: str) -> None:
    """Raise InvalidSetting unless `ok`."""
    if not ok:
        raise InvalidSetting(f"{name}={value!r}: {why}.", remedy)


def require_number(settings: dict[str, Any], name: str, low: float = 0.0, above: bool = False) -> None:
    """Raise InvalidSetting unless the setting is a finite number >= low (or > low)."""
    value = settings[name]
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
    good = good and (value > low if above else value >= low)
    bound = f"above {low:g}" if above else f"of at least {low:g}"
    require(good, name, value, f"it must be a finite number {bound}", f"set {name} to one.")


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as Python's own numbers: an lr may be a tensor, or of numpy."""
    return {k: _plain(v) for k, v in settings.items() if k != "params"}


def _plain(value: Any) -> Any:
    if type(value) in (float, bool, int, str):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return float(value) if isinstance(value, Real) else value


def put(group: dict[str, Any], settings: dict[str, Any]) -> None:
    """Set values of a param group; a tensor that is there is filled, since others may hold it (a scheduler)."""
    for name, value in settings.items():
        if name.startswith(NOTE):
            continue
        if isinstance(group.get(name), torch.Tensor):
            group[name].fill_(value)
        else:
            group[name] = value


def present(optimizer: "ReversibleOptimizer", groups: Sequence[dict[str, Any]] | None = None) -> Settings:
    """The settings that a step taken now would use, checked if they changed since the last one.

    `groups`: those of a state_dict, instead of the optimizer's own.
    """
    names = optimizer.defaults.keys() - REASONS.keys() - _IGNORED
    out = []
    for group in optimizer.param_groups if groups is None else groups:
        refuse_options(type(optimizer).__name__, {k: group[k] for k in REASONS if k in group}, ())
        out.append(plain({k: v for k, v in group.items() if k in names}))
    if groups is None and optimizer.schedulers.kept:
        out[0] |= optimizer.schedulers.notes()
    if out != optimizer._settings:
        for settings in out:
            optimizer.check_settings(settings)
        for key in optimizer.shared:
            values = {repr(s[key]) for s in out}
            if len(values) > 1:
                raise InvalidSetting(
                    f"{key} differs between param groups ({', '.join(sorted(values))}), but there is one energy.",
                    f"give all groups the same {key}.",
                )
    return out


def pack(earlier: Settings, later: Settings) -> dict[str, dict[str, Any]]:
    """What `earlier` had and `later` has not, by group number; `unpack` restores it."""
    pairs = zip(earlier, later, strict=False)
    same = [{k: a.get(k) for k in (a | b) if a.get(k) != b.get(k)} for a, b in pairs]  # None: it was not there
    return {str(i): changed for i, changed in enumerate(same) if changed} | {"groups": len(earlier)}


def unpack(packed: dict[str, Any] | None, later: Settings) -> Settings:
    """Inverse of `pack`."""
    if packed is None:
        return later
    return [later[i] | as_tuples(packed.get(str(i), {})) for i in range(packed["groups"])]


def as_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings read from JSON: lists (betas) become tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
