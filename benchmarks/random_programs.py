"""Random programs, there and back: how many do not come back bit for bit? (The answer must be 0.)

    python benchmarks/random_programs.py [--kind ops] [--programs 1000000] [--first 0] [--processes 2] [--json FILE]

`ops`: random ops on random blocks (tests/reference/programs.py). `mixtures`: every optimizer on parameters of mixed
dtypes, sizes, layouts and groups, with steps that are refused (tests/reference/mixtures.py). One a seed; the test suite
runs the first 10,000 and the first 2,000. What is done is written every 1,000 programs, and a run that was ended early
goes on where it was.
"""

import argparse
import json
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
KINDS = {"ops": ("programs", 1_000_000), "mixtures": ("mixtures", 100_000)}
CHUNK = 1000


def chunk(work: tuple[str, range]) -> tuple[list, Counter]:
    from reference import mixtures, programs

    torch.set_num_threads(1)
    kind, seeds = work
    return (programs if kind == "ops" else mixtures).check(seeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="ops")
    parser.add_argument("--programs", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    name, programs = KINDS[args.kind]
    programs = args.programs or programs
    path = args.json or HERE / "results" / f"random-{name}.json"
    torch.set_num_threads(1)
    start = {"kind": args.kind, "first_seed": args.first, "processes": args.processes}
    result = start | {"programs": 0, "failures": 0, "failed_seeds": [], "seconds": 0.0, "events": {}}
    if path.exists():
        before = json.loads(path.read_text())
        if start.items() <= before.items() and before["programs"] < programs:
            result = before
    first, end, earlier = args.first + result["programs"], args.first + programs, result["seconds"]
    work = [(args.kind, range(a, min(a + CHUNK, end))) for a in range(first, end, CHUNK)]
    began, events = time.perf_counter(), Counter(result["events"])
    with get_context("spawn").Pool(args.processes) as pool:
        done = zip(work, pool.imap(chunk, work), strict=True)
        for (_, seeds), (bad, happened) in track(done, "programs", len(work)):
            events += happened
            result["programs"] += len(seeds)
            result["failures"] += len(bad)
            result["failed_seeds"] = [*result["failed_seeds"], *bad][:100]
            result["seconds"] = round(earlier + time.perf_counter() - began, 1)
            result |= {"events": events, "command": " ".join(sys.argv), "environment": environment.record()}
            write_json(path, result)
    print(f"{result['programs']} programs, {result['failures']} failures, {result['seconds']:.0f} s; {dict(events)}")
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
