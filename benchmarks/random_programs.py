"""Random programs of random ops, there and back: how many do not come back bit for bit? (The answer must be 0.)

    python benchmarks/random_programs.py [--programs 1000000] [--first 0] [--json FILE]

The programs are those of tests/reference/programs.py, one a seed; the test suite runs the first 10,000.
"""

import argparse
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import track

from loschmidt.files import write_json
from loschmidt.trajectory import environment

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
PROCESSES, CHUNK = 2, 1000


def chunk(seeds: range) -> tuple[list[int], Counter]:
    from reference.programs import check

    torch.set_num_threads(1)
    return check(seeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "random-programs.json")
    args = parser.parse_args()
    end = args.first + args.programs
    chunks = [range(a, min(a + CHUNK, end)) for a in range(args.first, end, CHUNK)]
    failed, events, began = [], Counter(), time.perf_counter()
    with get_context("spawn").Pool(PROCESSES) as pool:
        for bad, happened in track(pool.imap_unordered(chunk, chunks), "programs", len(chunks)):
            failed += bad
            events += happened
    seconds = time.perf_counter() - began
    print(f"{args.programs} programs, {len(failed)} failures, {seconds:.0f} s; {dict(events)}")
    torch.set_num_threads(1)
    result = {
        "programs": args.programs,
        "failures": len(failed),
        "failed_seeds": sorted(failed)[:100],
        "first_seed": args.first,
        "seconds": round(seconds, 1),
        "processes": PROCESSES,
        "events": events,
        "command": " ".join(sys.argv),
        "environment": environment.record(),
    }
    write_json(args.json, result)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
