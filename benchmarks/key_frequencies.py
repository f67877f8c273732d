"""How often what has no rule has a key frequency: noise, and networks that were never trained.

    python benchmarks/key_frequencies.py

Writes benchmarks/results/key-frequencies.json: by modulus, training share and kind, the share of tables with a key
frequency, found on test pairs and on the whole table, at the threshold that stands in `BySum.threshold`; the largest
share that a frequency explained, over that threshold; the mean and the largest Gini coefficient.
"""

from pathlib import Path

import torch

from loschmidt.files import write_json
from loschmidt.models import OneLayerTransformer
from loschmidt.tasks import fourier, modular_addition
from loschmidt.trajectory import environment

CASES = ((13, 0.8, 1000), (13, 0.5, 1000), (31, 0.6, 1000), (31, 0.4, 1000), (113, 0.3, 20))  # p, share, tables
KINDS = {
    "noise": lambda p, seed: torch.randn(p * p, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    "untrained": lambda p, seed: fourier.whole_table(OneLayerTransformer(p, seed=seed), p),
}


def measure(p: int, share: float, tables: int, kind: str) -> dict[str, float | int | str]:
    """One row of the record."""
    found = {"test": [], "all": []}
    ginis = []
    for seed in range(tables):
        z, train = KINDS[kind](p, seed), fourier.mask(modular_addition(p, share, seed).train[0], p)
        for name, table in (("test", fourier.BySum(z, ~train)), ("all", fourier.BySum(z))):
            found[name].append(float(table.explained().max()) / table.threshold())
        ginis.append(fourier.gini(table.explained().sqrt()))
    row = {"p": p, "train_fraction": share, "kind": kind, "tables": tables}
    for name, peaks in found.items():
        row |= {f"with_keys_{name}": sum(x > 1 for x in peaks) / tables, f"largest_{name}": max(peaks)}
    return row | {"gini": sum(ginis) / tables, "largest_gini": max(ginis)}


def main() -> None:
    """Measure all, print rows as docs/tasks.md has them, write the record."""
    torch.set_num_threads(1)
    rows = [measure(*case, kind) for case in CASES for kind in KINDS]
    print("\n".join(map(line, rows)))
    record = {
        "command": "python benchmarks/key_frequencies.py",
        "rows": rows,
        "environment": environment.record(),
    }
    write_json(Path(__file__).parent / "results/key-frequencies.json", record)


def line(row: dict) -> str:
    """A row of the table in docs/tasks.md."""
    pairs = row["p"] ** 2 - round(row["train_fraction"] * row["p"] ** 2)
    return (
        f"| {row['p']} | {row['kind']} | {row['tables']:,} | {pairs:,} | {row['with_keys_test']:.1%} |"
        f" {row['largest_test']:.2f} | {row['with_keys_all']:.1%} | {row['largest_all']:.2f} | {row['gini']:.2f} |"
    )


if __name__ == "__main__":
    main()
