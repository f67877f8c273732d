"""What a reversible step costs beside torch's AdamW, on the default echo task: ratios from interleaved blocks.

    python benchmarks/step_time.py [--json FILE] [--blocks 30] [--steps 40]

Each block times the same number of whole steps (batch, forward, backward, optimizer) of torch.optim.AdamW in a bare
loop and of a `Trajectory` going forward and back, one after the other, on one thread; medians of per-block ratios.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import loschmidt as lo
from loschmidt.files import write_json
from loschmidt.tasks import modular_addition
from loschmidt.trajectory import environment

SETTINGS = {
    "ECD": {"lr": 0.03, "weight_decay": 2e-3},
    "SGD": {"lr": 0.03, "momentum": 0.9},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3},
}


def torch_loop(task):
    opt = torch.optim.AdamW(task.model.parameters(), lr=1e-3)

    def run(steps):
        for _ in range(steps):
            opt.zero_grad()
            task.loss(task.model, task.train).backward()
            opt.step()

    return run


def timed(f, *args):
    began = time.perf_counter()
    f(*args)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = torch_loop(modular_addition())
    rows = []
    for name, settings in SETTINGS.items():
        task = modular_addition()
        opt = getattr(lo.optim, name)(task.model.parameters(), **settings)
        traj = lo.Trajectory(task.model, opt, task.loss, lo.data.Schedule(task.train))
        traj.seek(args.steps)
        reference(args.steps)
        forward, back, base = [], [], []
        for _ in range(args.blocks):
            base.append(timed(reference, args.steps))
            start = traj.step
            forward.append(timed(traj.seek, start + args.steps))
            back.append(timed(traj.seek, start))
            traj.seek(start + args.steps // 10)
        ratio = [f / b for f, b in zip(forward, base, strict=True)]
        way_back = [b / f for b, f in zip(back, forward, strict=True)]
        row = {
            "optimizer": name,
            "torch_adamw_ms": 1e3 * statistics.median(base) / args.steps,
            "forward_ms": 1e3 * statistics.median(forward) / args.steps,
            "back_ms": 1e3 * statistics.median(back) / args.steps,
            "step_over_torch_adamw": statistics.median(ratio),
            "step_over_torch_adamw_quartiles": statistics.quantiles(ratio, n=4)[::2],
            "back_over_forward": statistics.median(way_back),
            "back_over_forward_quartiles": statistics.quantiles(way_back, n=4)[::2],
        }
        rows.append(row)
        print(
            f"{name:6} forward {row['forward_ms']:.2f} ms, {row['step_over_torch_adamw']:.2f} x torch AdamW "
            f"({row['torch_adamw_ms']:.2f} ms); back {row['back_over_forward']:.2f} x forward",
            flush=True,
        )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": torch.get_num_threads()}
        result = {"rows": rows, "blocks": args.blocks, "steps": args.steps, "command": " ".join(sys.argv)}
        write_json(args.json, result | {"environment": environment.record(), "machine": machine})


if __name__ == "__main__":
    main()
