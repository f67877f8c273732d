"""An anharmonic oscillator over many steps with each integrator: does its energy drift, and does every bit return?

    python benchmarks/integrators.py [--steps 100000] [--lr 0.1] [--only leapfrog forest-ruth]

The drift is the slope of a line through H over the whole run, times its length, with its standard error, beside the
oscillation. Two processes. Finished integrators are kept in benchmarks/results/integrators.json and not done again.
"""

import argparse
import json
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import loschmidt as lo
from loschmidt.dynamics import COMPOSITIONS
from loschmidt.files import write_json
from loschmidt.trajectory import environment

RESULT = Path(__file__).parent / "results/integrators.json"
SAMPLES = 1000


def measure(steps: int, lr: float, name: str) -> dict:
    """There and back."""
    torch.set_num_threads(1)
    q = torch.nn.Parameter(torch.tensor([1.0, 0.3], dtype=torch.float64))
    opt = lo.optim.ECD([q], lr=lr, F0=-1.0, integrator=name, resolution=2.0**-50)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = q.square().sum() / 2 + q.pow(4).sum() / 4
        loss.backward()
        return loss

    def energy() -> float:
        return opt.energy_at(float(closure().detach()))

    start, began = opt.digest(), time.perf_counter()
    energies = [energy()]
    for step in range(1, steps + 1):
        opt.step(closure)
        if step % (steps // SAMPLES) == 0:
            energies.append(energy())
    seconds = time.perf_counter() - began
    for _ in range(steps):
        opt.unstep(closure)
    (slope, _), covariance = np.polyfit(np.linspace(0, 1, len(energies)), energies, 1, cov=True)
    return {
        "integrator": name,
        "order": COMPOSITIONS[name].order,
        "gradients_per_step": COMPOSITIONS[name].gradients,
        "steps": steps,
        "exact": opt.digest() == start,
        "oscillation": float(np.ptp(energies)),
        "drift": float(slope),
        "drift_standard_error": float(covariance[0, 0] ** 0.5),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure all, print a line each, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--only", nargs="*", default=list(COMPOSITIONS), choices=list(COMPOSITIONS))
    given = parser.parse_args()
    command = f"python benchmarks/integrators.py --steps {given.steps} --lr {given.lr}"
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = before["rows"] if before.get("command") == command else []
    todo = [name for name in given.only if name not in {row["integrator"] for row in rows}]
    with get_context("spawn").Pool(2) as pool:
        work = pool.imap_unordered(partial(measure, given.steps, given.lr), reversed(todo))
        for row in track(work, "integrators", len(todo)):
            rows.append(row)
            print(
                f"{row['integrator']:12} exact {row['exact']}  drift {row['drift']:.1e} ± "
                f"{row['drift_standard_error']:.1e} of {row['oscillation']:.1e}  {row['seconds']:.0f} s"
            )
            record = {"command": command, "rows": sorted(rows, key=lambda r: (r["order"], r["gradients_per_step"]))}
            write_json(RESULT, record | {"environment": environment.record()})


if __name__ == "__main__":
    main()
