"""The twelve claims, and which of them are built: those whose file `cNN_*.py` lies in this folder."""

import importlib
import pkgutil
import re
from dataclasses import dataclass

from ..errors import InvalidSetting
from .record import Claim
from .topics import TWELVE

PACKAGE = __package__
"""Where claims are looked for."""

_FILE = re.compile(r"c(\d\d)_\w+")


@dataclass(frozen=True)
class Built:
    """A claim, and the module that it is found in by a worker process."""

    claim: Claim
    module: str


def built(package: str | None = None) -> dict[int, Built]:
    """The claims that there are, by number.

    Args:
        package: another package to look in than this one.

    Raises:
        InvalidSetting: a file of a claim without a CLAIM, with another number than its name says, or two of one number.
    """
    package = package or PACKAGE
    found: dict[int, Built] = {}
    for info in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda info: info.name):
        match = _FILE.fullmatch(info.name)
        if match is None:
            continue
        entry = load(f"{package}.{info.name}")
        if entry.claim.id != int(match[1]):
            raise InvalidSetting(f"{info.name}.py holds claim {entry.claim.id}.", "rename the file, or change the id.")
        if entry.claim.id in found:
            raise InvalidSetting(
                f"{info.name}.py and {found[entry.claim.id].module.split('.')[-1]}.py are both claim {entry.claim.id}.",
                "give what they share a name without cNN_.",
            )
        found[entry.claim.id] = entry
    return dict(sorted(found.items()))


def load(module: str) -> Built:
    """The claim of a module."""
    claim = getattr(importlib.import_module(module), "CLAIM", None)
    if not isinstance(claim, Claim):
        raise InvalidSetting(f"{module} has no claim.", "end it with CLAIM = Claim(...).")
    return Built(claim, module)


def find(id: int, package: str | None = None) -> Built:
    """One claim.

    Raises:
        InvalidSetting: there is none of that number, or it is not built yet.
    """
    found = built(package)
    if id in found:
        return found[id]
    if id in TWELVE:
        seen = f"claim {id} ({TWELVE[id].title}) is not built yet."
    else:
        seen = f"there is no claim {id}; they are numbered 1 to {len(TWELVE)}."
    raise InvalidSetting(seen, f"choose one of those that are built: {', '.join(map(str, found)) or 'none yet'}.")
