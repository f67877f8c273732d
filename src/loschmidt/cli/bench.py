"""`loschmidt bench`: what reversible steps cost on this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from ..bench import default_plan, run_bench
from ..bench.picture import draw
from ..bench.table import tables
from ..errors import InvalidSetting
from ..files import refuse_unwritable, write_json
from .invocation import command

Several = Parameter(consume_multiple=True, negative="")


def bench(
    *,
    only: Annotated[list[str] | None, Several] = None,
    sizes: Annotated[list[float] | None, Several] = None,
    growth_sizes: Annotated[list[float] | None, Several] = None,
    repeats: int = 15,
    threads: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    steps: int | None = None,
    out: Path = Path("out/bench"),
    json: Path | None = None,
) -> int:
    """Measure what reversible steps cost beside torch.optim, on this machine.

    Everything that is compared is measured in turns in one run; ratios are medians of pairs. Let nothing else run
    meanwhile.

    Examples:

        loschmidt bench

        loschmidt bench --only steps --sizes 1e6 1e7 --threads 2 --json steps.json

        loschmidt bench --only training alternatives --repeats 5

        loschmidt bench --only gpt2 --device cuda --steps 1000

    Exit code: 0 if all was measured, 1 if a section failed or a way back was not exact, 130 after Ctrl-C (what was
    finished is kept).

    Parameters
    ----------
    only
        One or more of: steps (optimizers alone), training (whole steps of a small GPT), gpt2 (AdamW on 124 M
        parameters), alternatives (checkpoints, deltas, replay), growth (1e5 to 1e8 parameters). Default: all.
    sizes
        Parameters, for steps. Default: 1e6 1e7 5e7.
    growth_sizes
        Parameters, for growth. Default: 1e5 3e5 ... 1e8, as far as memory goes.
    repeats
        Paired measurements of each thing.
    threads
        Of torch. Default: torch's own choice.
    seed
        Of weights, gradients and batches.
    device
        cpu or cuda.
    steps
        Of gpt2, there and back. Default: 3 on a CPU, 1,000 on cuda.
    out
        Folder for bench.json and bench.png.
    json
        A second place for the results, as JSON.
    """
    console = Console()
    names = tuple(name for given in only or () for name in given.split(",") if name)
    plan = default_plan(names, sizes or (), growth_sizes or (), repeats, threads, seed, device, steps)
    if out.exists() and not out.is_dir():
        raise InvalidSetting(f"--out {out} is a file.", "give a folder.")
    places = [path for path in (out / "bench.json", json) if path is not None]
    for path in (*places, out / "bench.png"):  # now, and not after the run
        refuse_unwritable(path)
    results = {"command": command()} | run_bench(plan)
    for path in places:
        write_json(path, results)
    console.print(tables(results))
    picture = f"Picture: {out / 'bench.png'}   " if draw(results, out / "bench.png") else ""
    console.print(f"{picture}results: {out / 'bench.json'}   {results['seconds']:.0f} s")
    for failure in results["failures"]:
        console.print(f"[red]{failure}[/]")
    if results["interrupted"]:
        console.print("Interrupted; what was finished is above and in the results.")
        return 130
    return 0 if not results["failures"] and not _inexact(results["sections"]) else 1


def _inexact(sections: dict) -> bool:
    ways = [*sections.get("alternatives", {}).get("rows", ()), sections.get("gpt2", {}).get("ours", {})]
    return any(way.get("exact") is False for way in ways)
