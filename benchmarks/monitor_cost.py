"""What the energy monitor costs: modular addition with and without it, block beside block, on one thread.

    python benchmarks/monitor_cost.py [--blocks 20] [--every 50]

Two runs of the same bits go forward in turns, a block of steps each; one has a monitor that writes JSON lines at every
50th step. Medians of per-block ratios, with quartiles; a third run without a monitor says how far two equal runs
differ on this machine. Writes benchmarks/results/monitor-cost.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import loschmidt as lo
from loschmidt.bench import machine
from loschmidt.files import write_json
from loschmidt.tasks import modular_addition
from loschmidt.trajectory import environment

OPTIMIZERS = {
    "ECD": {"lr": 0.02, "weight_decay": 1e-3},
    "SGD": {"lr": 0.03, "momentum": 0.9},
    "AdamW": {"lr": 1e-3},
}
BATCHES = {"full batch": None, "batches of 64": 64}


def losses(model, batch):
    pairs, sums = batch
    return F.cross_entropy(model(pairs), sums, reduction="none")


def run_of(name, batch_size):
    task = modular_addition()
    opt = getattr(lo.optim, name)(task.model.parameters(), **OPTIMIZERS[name])
    return lo.Trajectory(task.model, opt, task.loss, lo.data.Schedule(task.train, batch_size))


def timed(traj, steps):
    began = time.perf_counter()
    traj.seek(traj.step + steps)
    return (time.perf_counter() - began) / steps


def measure(name, batch_size, blocks, every, folder):
    bare, watched, control = (run_of(name, batch_size) for _ in range(3))
    path = folder / f"{name}-{batch_size}.jsonl"
    whole = batch_size is None
    with lo.physics.EnergyMonitor(watched, every, path, losses=None if whole else losses):
        for traj in (bare, watched, control):
            traj.seek(every)
        times = [[timed(traj, 2 * every) for traj in (bare, watched, control)] for _ in range(blocks)]
    same = bare.digest() == watched.digest()
    lines = len(lo.physics.read(path))
    share = [w / b - 1 for b, w, _ in times]
    noise = [c / b - 1 for b, _, c in times]
    return {
        "optimizer": name,
        "batch_size": batch_size,
        "step_ms": 1e3 * statistics.median(b for b, *_ in times),
        "line_ms": 1e3 * every * statistics.median(w - b for b, w, _ in times),
        "cost": statistics.median(share),
        "cost_quartiles": statistics.quantiles(share, n=4)[::2],
        "two_equal_runs_differ": statistics.median(noise),
        "two_equal_runs_differ_quartiles": statistics.quantiles(noise, n=4)[::2],
        "lines": lines,
        "same_bits": same,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/monitor-cost.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in OPTIMIZERS:
            for batch_size in BATCHES.values():
                row = measure(name, batch_size, given.blocks, given.every, Path(folder))
                rows.append(row)
                print(
                    f"{name:6} {batch_size or 'full'!s:5} step {row['step_ms']:.2f} ms, a line {row['line_ms']:.2f} ms, "
                    f"cost {row['cost']:.2%} (equal runs {row['two_equal_runs_differ']:+.2%}), same bits "
                    f"{row['same_bits']}",
                    flush=True,
                )
    record = {"command": "python benchmarks/monitor_cost.py", "every": given.every, "blocks": given.blocks}
    write_json(given.json, record | {"rows": rows, "environment": environment.record(), "machine": machine.describe("cpu")})


if __name__ == "__main__":
    main()
