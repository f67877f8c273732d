"""Gradients that keep the energy: lr="auto" beside fixed steps, on modular addition over the same time.

    python benchmarks/step_control.py [--time 480] [--seeds 5]

A fixed step counts for a seed if |change of H| stays below the tolerance over the whole run (it is ended where it does
not); "the fixed step that does the same" is the largest of those tried that does so for all seeds. H is that of
parameters and momenta as they are stored, between steps; so fixed steps are done with the leapfrog, too, whose H is
known to second order there, as that of lr="auto" is. Runs of lr="auto" are also wound back, and compared bit for bit.
Two processes; finished runs are kept in benchmarks/results/step-control.json and not done again.
"""

import argparse
import itertools
import json
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import track

import loschmidt as lo
from loschmidt.files import write_json
from loschmidt.tasks import modular_addition
from loschmidt.trajectory import environment

RESULT = Path(__file__).parent / "results/step-control.json"
TOLERANCE, FRACTION, DECAY = 1e-2, 0.4, 1e-3
FIXED = tuple(itertools.product((0.03, 0.02, 0.015, 0.01), ("euler", "leapfrog")))


def measure(duration: float, job: tuple[tuple[float | str, str], int]) -> dict:
    """One run."""
    (lr, integrator), seed = job
    torch.set_num_threads(1)
    task = modular_addition(train_fraction=FRACTION, seed=seed, dtype=torch.float64)
    opt = lo.optim.ECD(task.model.parameters(), lr=lr, weight_decay=DECAY, tolerance=TOLERANCE, integrator=integrator)
    traj = lo.Trajectory(task.model, opt, task.loss, lo.data.Schedule(task.train))
    start, began, passed, worst = traj.digest(), time.perf_counter(), 0.0, 0.0
    shell = opt.energy_at(traj.loss)

    def look(traj: lo.Trajectory) -> bool:
        nonlocal passed, worst
        passed += opt.carried["lr"] if lr == "auto" else lr
        energy = opt.energy_at(traj.loss) if opt.energy is None else opt.energy  # leapfrog: after the step
        worst = max(worst, abs(energy - shell))
        return passed >= duration or (lr != "auto" and worst >= TOLERANCE)

    traj.seek(10_000_000, on_step=look)
    row = {
        "lr": lr,
        "integrator": "verlet" if lr == "auto" else integrator,
        "seed": seed,
        "time": round(passed, 3),
        "steps": traj.step,
        "rejected": opt.rejected,
        "gradients": 2 * (traj.step + opt.rejected) if lr == "auto" else traj.step,
        "largest_change_of_H": worst,
        "test_accuracy": task.accuracy(task.model, task.test),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return row | ({"exact": traj.seek(0).digest() == start} if lr == "auto" else {})


def summary(rows: list[dict], seeds: int) -> dict:
    """The fixed step that does the same, and the gradients of both."""
    auto = [r for r in rows if r["lr"] == "auto"]
    out = {
        "auto_largest_change_of_H": max((r["largest_change_of_H"] for r in auto), default=None),
        "auto_exact": all(r["exact"] for r in auto),
        "fixed": {},
    }
    for integrator in ("euler", "leapfrog"):
        of = {x: [r for r in rows if (r["lr"], r["integrator"]) == (x, integrator)] for x, _ in FIXED}
        good = [x for x, r in of.items() if len(r) == seeds and all(y["largest_change_of_H"] < TOLERANCE for y in r)]
        out["fixed"][integrator] = {"does_the_same": max(good, default=None)}
        if good and len(auto) == seeds:
            fixed = {r["seed"]: r["gradients"] for r in of[max(good)]}
            out["fixed"][integrator]["gradients_auto_over_fixed"] = {
                r["seed"]: r["gradients"] / fixed[r["seed"]] for r in auto
            }
    return out


def main() -> None:
    """Run all that is missing, print a line each, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, default=480.0)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    settings = {"time": given.time, "seeds": given.seeds, "tolerance": TOLERANCE, "fraction": FRACTION, "decay": DECAY}
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = before["rows"] if before.get("settings") == settings else []
    done = {(r["lr"], r["integrator"].replace("verlet", "euler"), r["seed"]) for r in rows}
    kinds = [("auto", "euler"), *FIXED[:4]]  # shorter steps, if these fail
    jobs = [j for j in itertools.product(kinds, range(given.seeds)) if (*j[0], j[1]) not in done]
    with get_context("spawn").Pool(2) as pool:
        for row in track(pool.imap(partial(measure, given.time), jobs), "runs", len(jobs)):
            rows.append(row)
            who, worst = f"lr {row['lr']} {row['integrator']}, seed {row['seed']}", row["largest_change_of_H"]
            print(f"{who}: {row['gradients']} gradients, H {worst:.4f}")
            record = {"command": f"python benchmarks/step_control.py --time {given.time:g} --seeds {given.seeds}"}
            record |= {"settings": settings, "summary": summary(rows, given.seeds), "rows": rows}
            write_json(RESULT, record | {"environment": environment.record()})
    print(json.dumps(summary(rows, given.seeds), indent=1))


if __name__ == "__main__":
    main()
