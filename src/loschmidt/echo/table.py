"""The results of an echo as a table: a column for each optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ..files import size

Run = dict[str, Any]


def table(runs: Sequence[Run]) -> Table:
    """Rows of facts, columns of runs; facts that no run has are left out."""
    out = Table(title=f"There and back: {runs[0]['task']}, {runs[0].get('parameters', 0):,} parameters")
    out.add_column("", no_wrap=True)
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
    return "[green]yes[/], all bits" if run["exact"] else f"[red]no[/], {run['differing_bits']} differ"


def _accuracies(look: Run | None) -> str:
    return f"{look['train_accuracy']:.3f} / {look['test_accuracy']:.3f}" if look else ""


def _perturbed(run: Run) -> str:
    look = run["perturbed"]
    if not look:
        return ""
    where = "" if look["reached_step"] == 0 else f"\nblew up at step {look['reached_step']}"
    return _accuracies(look) + where


def _floats(run: Run) -> str:
    if run["float_return_error"] is None:
        return ""
    if run.get("float_failed_after") is None:
        return f"off by {run['float_return_error']:.0e}"
    return f"lost after {run['float_failed_after']}"


def _float_theory(run: Run) -> str:
    return f"{run['float_theory_steps']:.0f}" if run.get("float_theory_steps") else ""


def _energy(run: Run) -> str:
    energy = run.get("energy")
    return f"{energy['start']:.4f} -> {energy['turn']:.4f}" if energy else ""


def _energy_change(run: Run) -> str:
    return f"{run['energy']['largest_change']:.1e}" if run.get("energy") else ""


_FACTS: dict[str, Callable[[Run], str]] = {
    "steps out": lambda r: f"{r['steps']:,}",
    "train loss at the turn": lambda r: f"{r['turn']['train_loss']:.3g}",
    "accuracy, train / test": lambda r: _accuracies(r["turn"]),
    "returned exactly?": _exactly,
    "accuracy at step 0": lambda r: _accuracies(r["returned"]),
    "returned perturbed": _perturbed,
    "energy H, out": _energy,
    "... largest change": _energy_change,
    "bits/parameter/step": lambda r: f"{r['bits_per_parameter_step']:.5f}",
    "... in theory": lambda r: f"{r['theory_bits_per_parameter_step']:.5f}",
    "tape": lambda r: size(r["tape_bytes"]),
    "journal": lambda r: size(r["journal_bytes"]),
    "all checkpoints": lambda r: size(r["checkpoint_bytes"]),
    "seconds out": lambda r: f"{r['forward_seconds']:.1f}",
    "seconds back": lambda r: "" if r["backward_seconds"] is None else f"{r['backward_seconds']:.1f}",
    "in floats, steps back": _floats,
    "... friction alone": _float_theory,
}


def markdown(runs: Sequence[Run]) -> str:
    """The same facts as a Markdown table, for documentation."""
    lines = ["| | " + " | ".join(run["optimizer"] for run in runs) + " |", "|---|" + "---|" * len(runs)]
    for name, fact in _FACTS.items():
        cells = [_plain(fact(run)) for run in runs]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines)


def _plain(cell: str) -> str:
    return Text.from_markup(cell).plain.replace("\n", ", ")
