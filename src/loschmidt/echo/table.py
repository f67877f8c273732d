"""The results of an echo as a table: a column for each optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

Run = dict[str, Any]


def table(runs: Sequence[Run]) -> Table:
    """Rows of facts, columns of runs; facts that no run has are left out."""
    out = Table(title=f"There and back: {runs[0]['task']}, {runs[0].get('parameters', 0):,} parameters")
    out.add_column("")
    for run in runs:
        out.add_column(run["optimizer"], justify="right")
    for name, fact in _FACTS.items():
        cells = [fact(run) for run in runs]
        if any(cells):
            out.add_row(name, *(cell or "-" for cell in cells))
    return out


def _exactly(run: Run) -> str:
    if run["exact"] is None:
        return "not finished"
    return "[green]yes[/], 0 bits differ" if run["exact"] else f"[red]no[/], {run['differing_bits']} bits differ"


def _accuracies(look: Run | None) -> str:
    return f"{look['train_accuracy']:.3f} / {look['test_accuracy']:.3f}" if look else ""


def _perturbed(run: Run) -> str:
    look = run["perturbed"]
    if not look:
        return ""
    where = "" if look["reached_step"] == 0 else f"\ndiverged at step {look['reached_step']}"
    return _accuracies(look) + where


def _floats(run: Run) -> str:
    if run["float_return_error"] is None:
        return ""
    if run["float_failed_after"] is None:
        return f"error {run['float_return_error']:.0e}\nafter {run['float_steps']} steps"
    theory = run["float_theory_steps"]
    bound = f"\n(friction alone: {theory:.0f})" if theory else ""
    return f"lost after {run['float_failed_after']} steps{bound}"


def _energy(run: Run) -> str:
    energy = run.get("energy")
    return f"{energy['start']:.4f}, moved {energy['largest_change']:.1e}" if energy else ""


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return ""


_FACTS: dict[str, Callable[[Run], str]] = {
    "steps out": lambda r: f"{r['steps']:,}",
    "loss at the turn": lambda r: f"{r['turn']['train_loss']:.3g}",
    "accuracy there, train / test": lambda r: _accuracies(r["turn"]),
    "returned exactly?": _exactly,
    "accuracy back at step 0": lambda r: _accuracies(r["returned"]),
    "... returned perturbed": _perturbed,
    "energy H": _energy,
    "bits/parameter/step": lambda r: f"{r['bits_per_parameter_step']:.5f}",
    "... in theory": lambda r: f"{r['theory_bits_per_parameter_step']:.5f}",
    "tape": lambda r: _size(r["tape_bytes"]),
    "journal": lambda r: _size(r["journal_bytes"]),
    "a checkpoint every step": lambda r: _size(r["checkpoint_bytes"]),
    "seconds forward": lambda r: f"{r['forward_seconds']:.1f}",
    "seconds back": lambda r: "" if r["backward_seconds"] is None else f"{r['backward_seconds']:.1f}",
    "plain floats run back": _floats,
}
