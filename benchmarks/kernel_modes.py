"""A step in each mode of the passes: native code, tensors, torch.compile; and what compiling them takes at first.

    python benchmarks/kernel_modes.py

Each mode runs in a process of its own, with empty caches. Writes benchmarks/results/kernel-modes.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import loschmidt as lo
from loschmidt.bench import machine
from loschmidt.bench.subjects import give, gradients, parameters
from loschmidt.files import write_json
from loschmidt.trajectory import environment

MODES, OPTIMIZERS = ("native", "eager", "compile"), ("SGD", "AdamW")


def measure(name: str, size: int, threads: int, steps: int) -> dict[str, float]:
    """Seconds of the first three steps (in which everything is compiled), and the median of those after them."""
    torch.set_num_threads(threads)
    mine, seconds = parameters(size, 0, "cpu"), []
    settings = {"lr": 1e-3, "momentum": 0.9} if name == "SGD" else {"lr": 1e-3}
    optimizer = getattr(lo.optim, name)(mine, **settings)
    give(mine, gradients(size, 0, "cpu"))
    for _ in range(steps + 3):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"first_seconds": sum(seconds[:3]), "step_seconds": statistics.median(seconds[3:])}


def main() -> None:
    """Measure all, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--one", metavar="OPTIMIZER", help="measure this one here, and print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.size, given.threads, given.steps)))
        return
    rows = []
    for name in OPTIMIZERS:
        for mode in MODES:
            with tempfile.TemporaryDirectory() as empty:
                caches = {"XDG_CACHE_HOME": empty, "TORCHINDUCTOR_CACHE_DIR": empty, "LOSCHMIDT_KERNELS": mode}
                command = [sys.executable, __file__, "--one", name, "--size", str(given.size)]
                command += ["--threads", str(given.threads), "--steps", str(given.steps)]
                done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, check=True)
            rows.append({"optimizer": name, "mode": mode} | json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{name:6} {mode:8} {1e3 * rows[-1]['step_seconds']:8.2f} ms   first {rows[-1]['first_seconds']:.1f} s"
            )
    out = Path(__file__).parent / "results/kernel-modes.json"
    settings = {"size": given.size, "threads": given.threads, "steps": given.steps}
    record = {"command": "python benchmarks/kernel_modes.py", "settings": settings, "rows": rows}
    write_json(out, record | {"environment": environment.record(), "machine": machine.describe("cpu")})


if __name__ == "__main__":
    main()
