"""Flip single bits of runs in memory, one a trial, and go back to step 0: which are noticed, harmless, or silent?

    python benchmarks/bit_flips.py [--trials 1000] [--seed 0] [--json FILE]

The harness, with its subjects and places, is tests/reference/memory.py; the test suite runs a few trials of it. A trial
is "silent" if the run arrives at step 0 without an error and any bit there is not what it was, and "raw" if the error
is none of this package's. There must be none of either. `--page` writes the table of docs/what-is-reversible.md anew.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from loschmidt.files import write_json, written_atomically
from loschmidt.trajectory import environment

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
RECORD, PAGE = HERE / "results" / "bit_flips.json", HERE.parent / "docs" / "what-is-reversible.md"


def table(record: dict) -> str:
    """The record as the page shows it."""
    found = {"silent and wrong": 0, "harmless": 0} | record["outcomes"]
    found["silent and wrong"] = found.pop("silent", 0)
    rows = [(kind if " " in kind or kind == "harmless" else f"`{kind}`", n) for kind, n in found.items()]
    rows.sort(key=lambda row: (row[0] == "silent and wrong", -row[1]))
    lines = [f"| {kind} | {n:,} |" for kind, n in rows]
    return "\n".join([f"| outcome | of {record['trials']:,} flips |", "|---|---|", *lines])


def write_page() -> None:
    """Put the table of the record into the page."""
    before, rest = PAGE.read_text().split("<!-- bit flips -->")
    after = rest.split("<!-- /bit flips -->")[1]
    shown = table(json.loads(RECORD.read_text()))
    with written_atomically(PAGE) as temporary:
        temporary.write_text(f"{before}<!-- bit flips -->\n\n{shown}\n\n<!-- /bit flips -->{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--page", action="store_true", help="only write the page from the record")
    args = parser.parse_args()
    if args.page:
        return write_page()
    from reference.memory import DIGEST_EVERY, SUBJECTS, Memory

    torch.set_num_threads(1)
    began, memory, counts, bad = time.perf_counter(), Memory(), Counter(), []
    for seed in range(args.seed, args.seed + args.trials):
        if seed % 50 == 0:
            taken = time.perf_counter() - began
            print(f"{seed - args.seed} of {args.trials}, {taken:.0f} s", file=sys.stderr, flush=True)
        subject, when, place, outcome = memory.trial(seed)
        kind = outcome.split(":")[0]
        counts[subject, when, place, kind] += 1
        if kind.startswith(("silent", "raw")):
            bad.append({"seed": seed, "subject": subject, "when": when, "place": place, "outcome": outcome})
    outcomes = Counter()
    for (*_, kind), n in counts.items():
        outcomes[kind] += n
    print(f"{args.trials} flips: {dict(outcomes.most_common())}")
    result = {
        "trials": args.trials,
        "first_seed": args.seed,
        "digest_every": DIGEST_EVERY,
        "subjects": {
            name: {
                "optimizer": kind.__name__,
                "settings": {k: v if isinstance(v, (int, float, str, tuple)) else str(v) for k, v in settings.items()},
                "batch_norm_and_dropout": norm,
                "steps": steps,
            }
            for name, (kind, settings, norm, steps) in SUBJECTS.items()
        },
        "outcomes": dict(outcomes.most_common()),
        "counts": [
            {"subject": subject, "when": when, "place": place, "outcome": kind, "trials": n}
            for (subject, when, place, kind), n in sorted(counts.items())
        ],
        "silent_or_raw": bad,
        "seconds": round(time.perf_counter() - began, 1),
        "command": " ".join(["python", "benchmarks/bit_flips.py", *sys.argv[1:]]),
        "environment": environment.record(),
    }
    write_json(args.json, result)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
