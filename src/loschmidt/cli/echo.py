"""`loschmidt echo`: train, turn round, come back, compare."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from ..echo import default_plan, run_echo
from ..echo.picture import draw
from ..echo.table import table
from ..errors import InvalidSetting
from ..files import refuse_unwritable, write_json
from .invocation import command


def echo(
    *,
    task: str = "modular-addition",
    optimizer: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    perturb: float = 1e-6,
    out: Path = Path("out/echo"),
    json: Path | None = None,
) -> int:
    """Train, turn round, come back to step 0, and compare every bit.

    From the same turn the run also goes back with one parameter changed, and the optimizer's own formulas are run
    there and back in plain floats. Prints a table, and draws a picture of the first optimizer's run.

    Examples:

        loschmidt echo

        loschmidt echo --optimizer ECD AdamW --steps 500 --seed 3

        loschmidt echo --optimizer SGD --batch-size 64 --json sgd.json

        loschmidt echo --task digits --optimizer AdamW --out out/digits

    Exit code: 0 if every run came back with the same bits, 1 if not, 130 after Ctrl-C (what was finished is kept).

    Parameters
    ----------
    task
        What to learn: modular-addition (grokking), text (a small GPT on the source of Python's standard library), or
        digits (a small CNN on scikit-learn's images: pip install 'loschmidt[data]').
    optimizer
        One or more of ECD, SGD, AdamW, Adam, BBI, ECDq1. Default: ECD, SGD and AdamW.
    steps
        How far to go, for every optimizer. Default: 1,000 (text: 800); on modular-addition ECD until test
        accuracy is 0.9.
    seed
        Of the data split, the initial weights and the batches.
    batch_size
        Samples a step. Default: the task's own: all of modular-addition, 16 windows of text, 64 digits.
    perturb
        What is added to one parameter at the turn for the perturbed return.
    out
        Folder for echo.png and echo.json.
    json
        A second place for the results, as JSON.
    """
    console = Console()
    names = tuple(name for given in optimizer or () for name in given.split(",") if name)
    plan = default_plan(task, names, steps, seed, batch_size, perturb)
    if out.exists() and not out.is_dir():
        raise InvalidSetting(f"--out {out} is a file.", "give a folder.")
    for path in (out / "echo.json", out / "echo.png", json):  # now, and not after the run
        if path is not None:
            refuse_unwritable(path)
    results = run_echo(plan) | {"command": command()}
    for path in (out / "echo.json", json):
        if path is not None:
            write_json(path, results)
    runs = [run for run in results["runs"] if "turn" in run]
    if runs:
        console.print(table(runs))
        draw(runs[0], out / "echo.png")
        console.print(f"Picture: {out / 'echo.png'}   results: {out / 'echo.json'}   {results['seconds']:.0f} s")
    for failure in results["failures"]:
        console.print(f"[red]{failure}[/]")
    if results["interrupted"]:
        console.print("Interrupted; what was finished is above and in the results.")
        return 130
    return 0 if runs and not results["failures"] and all(run["exact"] for run in runs) else 1
