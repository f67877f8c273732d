"""The twelve claims, and which of them are built: those whose file `cNN_*.py` lies in this folder."""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidSetting
from .record import Claim

PACKAGE = __package__
"""Where claims are looked for."""

_FILE = re.compile(r"c(\d\d)_\w+")


@dataclass(frozen=True)
class Topic:
    """A claim in a few words, and the sentences of the source (docs/source.md) that it reads."""

    title: str
    sentences: tuple[int, ...]


TWELVE: Mapping[int, Topic] = {
    1: Topic("evidence can be undone by counter-evidence", (1,)),
    2: Topic("friction makes SGD with momentum irreversible", (2,)),
    3: Topic("training is cooling, and crystallises", (2, 3)),
    4: Topic("a lower-energy isoform can't be un-formed", (3,)),
    5: Topic("un-grokking with a loss function", (4,)),
    6: Topic("such losses may not be feasible", (5,)),
    7: Topic("to reverse ECD, reverse weight decay as well", (6,)),
    8: Topic("gradient hacking under SFT is difficult", (7,)),
    9: Topic("exploration hacking defeats later training", (7,)),
    10: Topic("ECD is reversible", (8,)),
    11: Topic("mini-batch noise adds energy to ECD", (9,)),
    12: Topic("the query-key symmetry spins parameters up", (9,)),
}
"""All claims, built or not; a built one speaks for itself."""


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
