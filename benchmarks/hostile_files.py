"""Files that were made to do harm: how many of them raise, run, write or print what they should not?

    python benchmarks/hostile_files.py [--files 300] [--first 0] [--json FILE]

(The answer must be 0.) One file or folder a seed, made by tests/reference/hostile.py: mutated manifests, states, tapes,
journals and single files, signed with right digests; names that lead elsewhere; links, pipes, devices; headers that
lie; escape sequences. Each is listed, shown, verified, opened (also with salvage=True), sought to its start and pruned.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import filelock
import pydantic
import safetensors
from rich.progress import Progress

from loschmidt.files import write_json
from loschmidt.trajectory import environment

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))


def main() -> int:
    from reference.hostile import EVERY, STEPS, trials

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "hostile_files.json")
    args = parser.parse_args()
    seeds, began = range(args.first, args.first + args.files), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Progress() as bar:
        task = bar.add_task("files", total=args.files)
        found = trials(Path(folder), seeds, lambda: bar.advance(task), lambda fault: bar.print(repr(fault)))
    seconds = time.perf_counter() - began
    print(f"{args.files} files, {len(found['faults'])} faults, {seconds:.0f} s")
    versions = {m.__name__: getattr(m, "__version__", "") for m in (filelock, pydantic, safetensors)}
    result = {
        "settings": {"files": args.files, "first_seed": args.first, "steps": STEPS, "commit_every": EVERY},
        **found,
        "seconds": round(seconds, 1),
        "command": " ".join(["python", *sys.argv]),
        "versions": versions,
        "environment": environment.record(),
    }
    write_json(args.json, result)
    return bool(found["faults"])


if __name__ == "__main__":
    sys.exit(main())
