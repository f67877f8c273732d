"""Kill runs and flip bytes of their files, many times, and count what was lost or not noticed.

    python benchmarks/durability.py [--kills 1000] [--flips 10000] [--seed 1] [--folder FOLDER] [--json FILE]

A kill is SIGKILL at a random moment of a run that goes forward, into a branch, back and forward again, committing every
3 steps; the run must open at a committed step, and finish with the digests of an uninterrupted one. A flip changes one
byte of one file; `verify` must name the file, and nothing may be used before the damage is noticed.
Needs a system with fork.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from loschmidt.files import write_json
from loschmidt.live import choose
from loschmidt.trajectory import environment
from reference.flips import flips
from reference.kills import kills


def shown(job: str, total: int, harness: Callable) -> dict:
    began, done = time.perf_counter(), 0
    with choose(True) as display:
        display.begin(job, total)

        def tick() -> None:
            nonlocal done
            done += 1
            display.update(job, done)

        counts, wrong = harness(tick)
        display.end(job)
    seconds = round(time.perf_counter() - began, 1)
    return {"trials": sum(counts.values()), "by": dict(counts), "failures": wrong, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where runs are made; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="durability-"))
    results = {
        "command": f"python benchmarks/durability.py --kills {args.kills} --flips {args.flips} --seed {args.seed}"
    }
    try:
        for name, count, harness in (("kills", args.kills, kills), ("flips", args.flips, flips)):
            if count:
                work = folder / name
                work.mkdir()
                results[name] = shown(name, count, lambda tick: harness(work, count, args.seed, tick))  # noqa: B023
                print(f"{name}: {results[name]['trials']}, {len(results[name]['failures'])} failures", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        write_json(args.json, results | {"environment": environment.record()})
    return 1 if any(results[k]["failures"] for k in ("kills", "flips") if k in results) else 0


if __name__ == "__main__":
    sys.exit(main())
