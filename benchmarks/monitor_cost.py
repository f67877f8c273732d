"""What the energy monitor costs: modular addition with and without it, block beside block, on one thread.

    python benchmarks/monitor_cost.py [--blocks 20] [--every 50]

Two runs of the same bits go forward in turns, a block of steps each; one has a monitor that writes a JSON line at every
50th step. Medians over blocks, with quartiles, of the time inside the monitor over the rest of the block's (line_share)
and of wall times with it over those without (wall_share); a third run, without a monitor, says how far two equal runs
differ on this machine. Full batches need one loss a side; batches of 64 are looked at with losses of single samples,
which gives full data and 64 batches at once. Writes benchmarks/results/monitor-cost.json.
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
    return time.perf_counter() - began


class Clocked(lo.physics.EnergyMonitor):
    """A monitor that knows how long it took."""

    seconds = 0.0

    def before(self, traj, back):
        began = time.perf_counter()
        super().before(traj, back)
        self.seconds += time.perf_counter() - began

    def after(self, traj, back):
        began = time.perf_counter()
        super().after(traj, back)
        self.seconds += time.perf_counter() - began


def measure(name, batch_size, blocks, every, folder):
    bare, watched, control = (run_of(name, batch_size) for _ in range(3))
    path = folder / f"{name}-{batch_size}.jsonl"
    with Clocked(watched, every, path, losses=None if batch_size is None else losses) as monitor:
        for traj in (bare, watched, control):
            traj.seek(every)
        walls, lines, steps = [], [], 2 * every
        for _ in range(blocks):
            before = monitor.seconds
            walls.append([timed(traj, steps) for traj in (bare, watched, control)])
            lines.append(monitor.seconds - before)
    share = [line / (watched - line) for line, (_, watched, _) in zip(lines, walls, strict=True)]
    wall = [w / b - 1 for b, w, _ in walls]
    noise = [c / b - 1 for b, _, c in walls]
    return {
        "optimizer": name,
        "batch_size": batch_size,
        "step_ms": 1e3 * statistics.median(b for b, *_ in walls) / steps,
        "line_ms": 1e3 * statistics.median(lines) * every / steps,
        "line_share": statistics.median(share),
        "line_share_quartiles": statistics.quantiles(share, n=4)[::2],
        "wall_share": statistics.median(wall),
        "wall_share_quartiles": statistics.quantiles(wall, n=4)[::2],
        "two_equal_runs_differ": statistics.median(noise),
        "two_equal_runs_differ_quartiles": statistics.quantiles(noise, n=4)[::2],
        "lines": len(lo.physics.read(path)),
        "same_bits": bare.digest() == watched.digest(),
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
                    f"{name:6} {batch_size or 'full'!s:5} step {row['step_ms']:.2f} ms, line {row['line_ms']:.2f} ms: "
                    f"cost {row['line_share']:.2%}; wall time {row['wall_share']:+.2%}, of two equal runs "
                    f"{row['two_equal_runs_differ']:+.2%}; same bits: {row['same_bits']}",
                    flush=True,
                )
    record = {"command": "python benchmarks/monitor_cost.py", "every": given.every, "blocks": given.blocks}
    about = {"environment": environment.record(), "machine": machine.describe("cpu")}
    write_json(given.json, record | {"rows": rows} | about)


if __name__ == "__main__":
    main()
