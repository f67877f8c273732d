"""What an echo found: rows by step, as data, and as a table."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table


@dataclass(frozen=True)
class Echo:
    """What an echo found.

    Attributes:
        turn: step at which it was turned.
        steps: how many steps it was to be wound back.
        perturbation: what was different, as JSON values.
        size: what was moved at the turn, by lattice: {"q": {"distance": ..., "relative": ...}, ...}.
        rows: one dict a sampled step, see `echo`.
        exact: whether it ended with the very bits that the path has there (None: in floats, or if it ended early).
        ended_by: why it ended early, or None.
        states: with `keep=True`: step -> state (lattices, size), float64.
    """

    turn: int
    steps: int
    perturbation: dict[str, Any]
    size: dict[str, dict[str, float | None]]
    rows: list[dict[str, Any]]
    exact: bool | None
    ended_by: str | None
    states: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the states, as JSON values (what is not finite as None)."""
        return as_json({k: v for k, v in vars(self).items() if k != "states"})

    def column(self, name: str, lattice: str = "q") -> list[float | None]:
        """A column of the rows: "step", "loss", "agreement", ..., or "distance" or "relative" of a lattice."""
        values = [row[name] for row in self.rows]
        return [v.get(lattice) if isinstance(v, dict) else v for v in values]

    def table(self, rows: int = 12) -> Table:
        """Up to `rows` of its rows, for a terminal."""
        every = max(1, math.ceil(len(self.rows) / rows))
        out = Table(title=f"Echo from step {self.turn}: {self.perturbation['kind']}")
        for name in ("step", "loss", "|dq| / |q|", "agreement", "agreement with the turn"):
            out.add_column(name, justify="right")
        for row in self.rows[::every]:
            cells = (row["loss"], row["relative"].get("q"), row["agreement"], row["agreement_with_turn"])
            out.add_row(str(row["step"]), *("-" if c is None else f"{c:.3g}" for c in cells))
        return out


def agreement(a: torch.Tensor | None, b: torch.Tensor | None) -> float | None:
    """Share of equal argmax along the last dimension."""
    if a is None or b is None or a.dim() < 2 or a.shape[-1] < 2:
        return None
    return float((a.argmax(-1) == b.argmax(-1)).double().mean())


def rms(a: torch.Tensor | None, b: torch.Tensor | None) -> float | None:
    """Root mean square of a - b, over that of b."""
    if a is None or b is None:
        return None
    norm = float(b.norm())
    return float((a - b).norm()) / norm if norm else None


def as_json(x: Any) -> Any:
    """JSON values; what is not finite becomes None."""
    if isinstance(x, dict):
        return {str(k): as_json(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [as_json(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
