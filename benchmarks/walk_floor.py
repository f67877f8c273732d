"""What the arithmetic of a pass costs beyond its walk over memory.

    python benchmarks/walk_floor.py [--size 10000000] [--threads 2] [--repeats 21]

Beside each pass stands a bare one: the same walk, in the same tiles, over the same arrays, read and written alike, with
an addition in the place of all arithmetic. No pass with these operands and this walk can take less. torch's fused step
is timed in the same turns. Writes benchmarks/results/walk-floor.json and the table in docs/what-it-costs.md.
"""

import argparse
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from loschmidt.bench import machine
from loschmidt.bench.subjects import LOSS, SUBJECTS, Subject, give, gradients, parameters
from loschmidt.exact import native
from loschmidt.files import write_json, written_atomically
from loschmidt.trajectory import environment

ROOT = Path(__file__).parent.parent
RESULT, PAGE = ROOT / "benchmarks/results/walk-floor.json", ROOT / "docs/what-it-costs.md"
HEADS = ("", "a pass's walk, bare", "with its arithmetic", "the step", "torch fused", "step / fused")
build, call = native.build, native.call


def bare(source: str) -> str:
    """The C source of a pass with its loop emptied of arithmetic."""
    loops = re.compile(r"(?<=\{ i64 i = start \+ j;\n)(.*?)(?=\n    \}\n)", re.S)
    loop = loops.search(source)[1]
    stored = dict.fromkeys(re.findall(r"\b([xwhs]\d?)\[i\] =", loop))
    loaded = dict.fromkeys(re.findall(r"\b([xgwh]\d?)\[i\]", loop))
    extra = " + ".join(f"(int){name}[i]" for name in loaded if name not in stored) or "1"
    lines = "\n".join(f"    {name}[i] {'=' if name[0] == 's' else '+='} {extra};" for name in stored)
    source = loops.sub(lines, source)
    return re.sub(r"(u64 unused = 0; \(void\)unused;) found\[\d+\] \+= sum_\w+\(.*?\);", r"\1", source)


@contextmanager
def emptied(functions: dict) -> Iterator[None]:
    """Passes are bare ones meanwhile."""
    with patch.object(native, "_functions", functions), patch.object(native, "build", lambda s: build(bare(s))):
        yield


def measure(subject: Subject, size: int, repeats: int) -> dict:
    """Medians, in seconds: passes, bare passes, step, torch's step."""
    mine = {name: parameters(size, 0, "cpu") for name in ("ours", "bare", "fused")}
    for each in mine.values():
        give(each, gradients(size, 0, "cpu"))
    ours, floor, fused = (
        subject.make(mine["ours"]),
        subject.make(mine["bare"]),
        subject.make_twin(mine["fused"], "fused"),
    )
    functions, seconds, inside = {}, defaultdict(list), [0.0]

    def timed(function, **arguments):
        start = time.perf_counter()
        call(function, **arguments)
        inside[0] += time.perf_counter() - start

    def step(optimizer, name):
        inside[0], start = 0.0, time.perf_counter()
        optimizer.step(loss=LOSS) if name != "fused" else optimizer.step()
        seconds[name].append(time.perf_counter() - start)
        seconds[f"passes of {name}"].append(inside[0])

    with patch.object(native, "call", timed):
        for _ in range(repeats + 3):
            step(ours, "ours")
            with emptied(functions):
                step(floor, "bare")
            step(fused, "fused")
    median = {name: statistics.median(x[3:]) for name, x in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"][3:], seconds["fused"][3:], strict=True))
    return {
        "optimizer": subject.name,
        "bare_seconds": median["passes of bare"],
        "passes_seconds": median["passes of ours"],
        "step_seconds": median["ours"],
        "fused_seconds": median["fused"],
        "step_over_fused": ratio,
        "bytes_moved": subject.bytes_moved(),
    }


def table(record: dict) -> str:
    """As it stands in the page."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for row in record["rows"]:
        times = [1e3 * row[f"{name}_seconds"] for name in ("bare", "passes", "step", "fused")]
        lines.append(
            f"| {row['optimizer']} | {' | '.join(f'{x:.1f} ms' for x in times)} | {row['step_over_fused']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all, write record and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    given = parser.parse_args()
    if native.mode(torch.device("cpu")) != "native":
        parser.error("passes are not compiled here. Remedy: install a C compiler, and leave LOSCHMIDT_KERNELS unset.")
    torch.set_num_threads(given.threads)
    rows = [measure(subject, given.size, given.repeats) for subject in SUBJECTS]
    record = {"command": "python benchmarks/walk_floor.py", "settings": vars(given), "rows": rows}
    write_json(RESULT, record | {"environment": environment.record(), "machine": machine.describe("cpu")})
    before, rest = PAGE.read_text().split("<!-- walk-floor -->")
    with written_atomically(PAGE) as temporary:
        after = rest.split("<!-- /walk-floor -->")[1]
        temporary.write_text(f"{before}<!-- walk-floor -->\n\n{table(record)}\n\n<!-- /walk-floor -->{after}")
    print(table(record))


if __name__ == "__main__":
    main()
