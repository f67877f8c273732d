"""The integers of lattices: one type for all, or by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .settings import require

LatticeTypes = torch.dtype | Mapping[str, torch.dtype]
"""torch.int64, torch.int32 or torch.int16, for all lattices; or by name, and the default for those not named."""


def integer_types(lattice: Any, names: Sequence[str]) -> dict[str, torch.dtype]:
    """The type of each lattice's integers, from one for all or from those that are not torch.int64, by name."""
    given = lattice if isinstance(lattice, Mapping) else dict.fromkeys(names, lattice)
    known = ", ".join(map(repr, names))
    require(given.keys() <= set(names), "lattice", lattice, f"the lattices are {known}", "name no others.")
    for name, dtype in given.items():
        whole = dtype in (torch.int64, torch.int32) or (dtype is torch.int16 and name != "q")
        require(whole, "lattice", lattice, "not a supported type of integer", "use torch.int64 or torch.int32.")
    return {name: given.get(name, torch.int32) for name in names}


def described(types: Mapping[str, torch.dtype]) -> str | dict[str, str]:
    """As JSON: one name if all are the same."""
    names = {k: str(dtype).removeprefix("torch.") for k, dtype in types.items()}
    return names if len(set(names.values())) > 1 else next(iter(names.values()))


def as_argument(lattice: str | dict[str, str]) -> str:
    """What to write for it."""
    if isinstance(lattice, str):
        return f"lattice=torch.{lattice}"
    return f"lattice={{{', '.join(f'{k!r}: torch.{name}' for k, name in lattice.items())}}}"


def from_description(lattice: str | dict[str, str]) -> torch.dtype | dict[str, torch.dtype]:
    """What to construct an optimizer with, to have these."""
    known = {"int64": torch.int64, "int32": torch.int32, "int16": torch.int16}
    return known[lattice] if isinstance(lattice, str) else {k: known[name] for k, name in lattice.items()}
