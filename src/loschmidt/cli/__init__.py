"""The command line: thin commands over the library."""

import sys

from cyclopts import App

from .. import errors
from ..trajectory.environment import package_version
from .bench import bench
from .claims import claims
from .echo import echo
from .runs import runs

app = App(
    name="loschmidt",
    help="Training that can be wound back bit for bit, and what friction costs in bits.",
    version=package_version,
)
app.command(bench)
app.command(claims)
app.command(echo)
app.command(runs)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; mistakes and refusals end with exit code 2 and a remedy, not a traceback."""
    try:
        sys.exit(app(arguments, result_action="return_value") or 0)
    except errors.LoschmidtError as error:
        print(f"loschmidt: {error.seen}", file=sys.stderr)
        if error.remedy:
            print(f"Remedy: {error.remedy}", file=sys.stderr)
        sys.exit(2)
