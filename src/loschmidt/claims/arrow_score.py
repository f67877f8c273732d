"""Ways back beside their predictions: which of them count, and scores against rivals that were told other things.

counted   each turn once; of runs that are, to the bit, the predicted ones; ways that broke off are left out
rivals    are told what the prediction is not: the outcome's shares among the *other* seeds, over all their ways back,
          from the same turn, of the same size, or of both
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import arrow_rule as rule
from .record import Evidence
from .return_rule import Thresholds, share

Rows = Sequence[Mapping[str, Any]]
KNOWN: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "size alone": lambda row: row["size"],
    "turn and size": lambda row: (row["turn"], row["size"]),
}
"""What rivals are told of a way back, beside those of `arrow_rule.scores` ("constant", "turn alone")."""


def counted(evidence: Evidence) -> tuple[dict[str, list[Mapping[str, Any]]], list[str]]:
    """The evidence without what does not count in the grid, and what that was, in words."""
    kept: dict[str, list[Mapping[str, Any]]] = {part: list(several) for part, several in evidence.items()}
    told = {seen["seed"]: seen["digest"] for seen in evidence.get(rule.PREDICTED, ())}
    words: list[str] = []
    for part in sorted(name for name in evidence if name.startswith(rule.GRID)):
        kept[part] = []
        for seen in evidence[part]:
            where = f"seed {seen['seed']}, {part}"
            if seen["ways"] and seen["turn"] in _twins(evidence, seen["seed"]):
                words.append(f"{where}: it would be past the end of the run, and is the turn that is there already.")
            elif told.get(seen["seed"], seen["digest"]) != seen["digest"]:
                words.append(f"{where}: its run is not, to the bit, the one that was predicted.")
            else:
                ways = [way for way in seen["ways"] if way["ended_by"] is None]
                if len(ways) < len(seen["ways"]):
                    words.append(f"{where}: {len(seen['ways']) - len(ways)} ways back broke off.")
                kept[part].append({**seen, "ways": ways})
    return kept, words


def _twins(evidence: Evidence, seed: int) -> set[str]:
    """Names of turns of a seed that are another's step, too; the end of the run, which is no number, keeps its name."""
    at: dict[int, set[str]] = {}
    for part in (name for name in evidence if name.startswith(rule.GRID)):
        for seen in evidence[part]:
            if seen["seed"] == seed and seen["ways"]:
                at.setdefault(seen["turn_step"], set()).add(seen["turn"])
    out: set[str] = set()
    for names in at.values():
        out |= set(sorted(names, key=lambda name: (name[0].isdigit(), name))[1:])
    return out


def rows(evidence: Evidence, which: str, t: Thresholds, kind: str = "random") -> list[dict[str, Any]]:
    """Ways back of a kind beside their predictions; of `counted` evidence.

    Those that are to un-generalise are from turns that had generalised, by test accuracy.
    """
    test = {
        (seen["seed"], name): turn["test"]
        for seen in evidence.get(rule.PREDICTED, ())
        for name, turn in seen["turns"].items()
    }
    found = [row for row in rule.pairs(evidence, which, t) if row["kind"] == kind]
    if which == "un-generalises":
        found = [row for row in found if test[row["seed"], row["turn"]] >= t["generalised"]]
    return found


def scores(several: Rows) -> dict[int, dict[str, float]]:
    """By seed: Brier scores of the prediction and of all rivals; empty with fewer than two seeds."""
    found = rule.scores(several)
    for name, known in KNOWN.items():
        for seed in found:
            own = [row for row in several if row["seed"] == seed]
            others = [row for row in several if row["seed"] != seed]
            whole = share(row["y"] for row in others)
            by: dict[Any, list[float]] = {}
            for row in others:
                by.setdefault(known(row), []).append(row["y"])
            guesses = [share(by[known(row)]) if known(row) in by else whole for row in own]
            found[seed] = found[seed] | {name: rule.brier(guesses, (row["y"] for row in own))}
    return found
